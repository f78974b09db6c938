"""One namespace with a bridge, TAPs and a filter; an uplink; forwards."""
