"""Where objects are kept: names, stores, versions and manifests."""
