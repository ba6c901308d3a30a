"""The documentation as a site: pages, references, links."""
