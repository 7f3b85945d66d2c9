"""BYTES: what is said on the network (numpy and protobuf only). May import: errors."""
