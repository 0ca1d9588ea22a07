"""Which addresses may be read from on behalf of a list that somebody else may have written."""

import ipaddress

# Besides what the ipaddress module calls not global: Azure's metadata and DNS host, and the
# prefixes that carry an IPv4 address inside an IPv6 one.
_REFUSED_NETWORKS = tuple(
    ipaddress.ip_network(each)
    for each in ("168.63.129.16/32", "64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32")
)


def is_public(address: str) -> bool:
    """Tells whether an IP address lies in the public Internet."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
        parsed = parsed.ipv4_mapped
    if any(parsed in network for network in _REFUSED_NETWORKS):
        return False
    return parsed.is_global and not parsed.is_multicast
