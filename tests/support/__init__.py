"""What several tests share: packets, pumps, hosts, sites, guests."""
