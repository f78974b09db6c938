# Login shells set PATH anew: the tools that mise manages come first in root's.
if [ "$(id -u)" = 0 ]; then
    case ":$PATH:" in
    *:/root/.local/share/mise/shims:*) ;;
    *) PATH=/root/.local/share/mise/shims:$PATH ;;
    esac
fi
