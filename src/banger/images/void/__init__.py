"""Void Linux: XBPS packages that are locked by digest and verified here, installed by xbps-static without privilege."""
