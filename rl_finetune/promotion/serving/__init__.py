"""The policy server: openpi's websocket wire in front of a bundle."""
