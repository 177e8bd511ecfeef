#!/usr/bin/env python3
"""A small model of the rules: the routes that each network learns, and the traces that follow from them.

Written from the rules alone (docs/rules: P, R7, G, E, T, and D8-D24). It reads the published laboratory in its
reference form and topology files of the lab, computes every row and compares it with the file's own rows:

    hybrid_model.py --reference interop-lab.yaml --topology two-hubs.yaml [--topology interop.yaml] [--tables]

Exit status 1 if any row differs.
"""
import argparse
import itertools
import sys
from copy import deepcopy
from dataclasses import dataclass, field
from ipaddress import ip_address as ip, ip_interface, ip_network as net

import yaml

MSEE_ASN, ER_ASN = 12076, 65515


# ---------------------------------------------------------------- networks

@dataclass
class Vnet:
    ranges: list
    vm: object = None
    vpn: dict = None              # {asn, hop}
    er: bool = False
    tunnel_ends: dict = field(default_factory=dict)   # (circuit, link) -> address


@dataclass
class Site:
    asn: int
    prefixes: list
    router: object
    vm: object
    edges: dict                   # name -> {lan, router_side}, in order; lan None: no link to the LAN
    subnets: list                 # own link subnets
    routes: str = "default"
    lan_ecmp: bool = False
    ecmp: bool = False
    preference: dict = None       # {circuit, vpn}
    export: dict = None


@dataclass
class Line:
    site: str
    edge: str
    circuit: str
    link: str
    customer: object
    provider: object
    up: bool = True


@dataclass
class Vpn:
    """A VPN connection; an end is ('vnet', name) or ('site', name, edge, address)."""
    name: str
    a: tuple
    b: tuple
    up: bool = True


@dataclass
class World:
    vnets: dict
    sites: dict
    lines: list
    vpns: list
    circuits: dict                # name -> [linked vnets]
    peerings: list                # {from, to, transit, use, access}
    silent_hop: bool              # vpn_ttl_for_site_traffic
    vnet_to_vnet: bool


def ends_of(prefix):
    first, second, *_ = net(prefix).hosts()
    return first, second


def other_end(interface):
    interface = ip_interface(interface)
    a, b = list(interface.network.hosts())
    return b if interface.ip == a else a


# ---------------------------------------------------------------- loading

def from_reference(doc):
    vnets, sites, lines, vpns = {}, {}, [], []
    for name, n in doc["networks"].items():
        if n["kind"] == "vnet":
            g = n["gateways"]
            v = Vnet([net(p) for p in n["address_space"]], ip(n["vm"]))
            if "vpn" in g:
                v.vpn = {"asn": g["vpn"]["asn"], "hop": ip(g["vpn"]["hop_ip"])}
            for e in g.get("expressroute", {}).get("tunnel_endpoints", []):
                v.er = True
                v.tunnel_ends[e["circuit"], e["link"]] = ip(e["ip"])
            vnets[name] = v
        else:
            pol, edges, routers = n["policy"], {}, iter(n["lan_router"]["ce_side_ips"])
            for ce in n["ce"]:
                lan = ip_interface(ce["lan_link"]["ip"]).ip if "lan_link" in ce else None
                edges[ce["name"]] = {"lan": lan, "router_side": ip(next(routers)) if lan else None}
                e = ce["expressroute_link"]
                lines.append(Line(name, ce["name"], e["circuit"], e["link"], ip_interface(e["ip"]).ip,
                                  ip(e["msee_ip"]), e["enabled"]))
            sites[name] = Site(
                n["asn"], [net(p) for p in n["prefixes"]], ip(n["lan_router"]["ip"]), ip(n["vm"]), edges,
                [net(p) for p in n["site_prefixes"]], "default" if pol["default_route_to_lan"] else "learned",
                pol["lan_ecmp_over_ce"], False,
                {"circuit": pol["local_preference"]["expressroute"], "vpn": pol["local_preference"]["vpn"]},
                {"circuit": [net(p) for p in pol["export_to_expressroute"]],
                 "vpn": [net(p) for p in pol["export_to_vpn"]]})
    for c in doc["vpn_connections"]:
        b = ("vnet", c["b"])
        if c["type"] == "IPsec":
            tun = [(ce["name"], ip_interface(ce["vpn_tunnel"]["ip"]).ip) for ce in doc["networks"][c["b"]]["ce"]
                   if "vpn_tunnel" in ce]
            b = ("site", c["b"], *tun[0])
        vpns.append(Vpn(c["name"], ("vnet", c["a"]), b))
    circuits = {c["name"]: c["linked_gateways"] for c in doc["circuits"]}
    peerings = [{"from": p["from"], "to": p["to"], "transit": p["allowGatewayTransit"],
                 "use": p["useRemoteGateways"], "access": p["allowVirtualNetworkAccess"]} for p in doc["peerings"]]
    return World(vnets, sites, lines, vpns, circuits, peerings, False, True)


def from_topology(doc):
    """The world, and the network of each host in the rows."""
    r, ends = doc["resources"], {}
    vnets = {n: Vnet([net(p) for p in v["addressSpace"]]) for n, v in r["virtualNetworks"].items()}
    nics = r["networkInterfaces"]
    for host, h in doc["hosts"].items():
        if "vm" in h:
            nic = nics[h["vm"]["nics"][0]]
            name = nic["subnet"].split("/")[0]
            vnets[name].vm = ip(nic["privateIPAddress"])
            ends[host] = name
    peerings = [{"from": n, "to": p["remoteVirtualNetwork"], "transit": p.get("allowGatewayTransit", False),
                 "use": p.get("useRemoteGateways", False), "access": p.get("allowVirtualNetworkAccess", True)}
                for n, v in r["virtualNetworks"].items() for p in v.get("peerings", {}).values()]
    owner = {}
    for name, g in r["virtualNetworkGateways"].items():
        owner[name] = v = g["virtualNetwork"]
        if g.get("gatewayType") == "ExpressRoute":
            vnets[v].er = True
        else:
            vnets[v].vpn = {"asn": g["asn"], "hop": ip(g["privateIPAddress"])}
    circuits = {c: [] for c in r["expressRouteCircuits"]}
    sites, lines, tunnels = {}, [], {}
    for name, s in doc["sites"].items():
        edges, bgp = {}, s.get("bgp", {})
        prefixes, subnets = [net(p) for p in s["prefixes"]], []
        for ce, e in s["customerEdges"].items():
            lan = ip_interface(e["lan"]) if "lan" in e else None
            edges[ce] = {"lan": lan and lan.ip, "router_side": lan and other_end(e["lan"])}
            if lan:
                subnets.append(lan.network)
            for li in e.get("lines", []):
                prefix = r["expressRouteCircuits"][li["circuit"]]["privatePeering"][li["link"]]
                subnets.append(net(prefix))
                lines.append(Line(name, ce, li["circuit"], li["link"], *ends_of(prefix), li.get("enabled", True)))
            for t in e.get("tunnels", []):
                tunnels[t["connection"]] = ("site", name, ce, ip(t["address"]))
        [(_, vm)] = s["lan"]["hosts"].items()
        ends[f"{name}-{next(iter(s['lan']['hosts']))}"] = name
        side = lambda k: bgp.get(k, {})
        exported = lambda k: [net(p) for p in side(k)["export"]] if "export" in side(k) else prefixes
        sites[name] = Site(s["asn"], prefixes, ip_interface(s["lan"]["router"]).ip, ip(vm), edges, subnets,
                           s["lan"].get("routes", "default"), s["lan"].get("ecmp", False), bgp.get("ecmp", False),
                           {k: side(k).get("localPreference", 100) for k in ("circuit", "vpn")},
                           {k: exported(k) for k in ("circuit", "vpn")})
    vpns, sides = [], set()
    for name, c in r["connections"].items():
        v = owner[c["virtualNetworkGateway1"]]
        if c.get("connectionType") == "ExpressRoute":
            circuits[c["expressRouteCircuit"]].append(v)
            for link, a in zip(("primary", "secondary"), c["tunnelAddresses"]):
                vnets[v].tunnel_ends[c["expressRouteCircuit"], link] = ip(a)
        elif c.get("connectionType") == "IPsec":
            vpns.append(Vpn(name, ("vnet", v), tunnels[name]))
        else:                                     # G10: one object a side, traffic needs both
            w = owner[c["virtualNetworkGateway2"]]
            sides.add((v, w))
            if (w, v) in sides:
                vpns.append(Vpn(f"{w}/{v}", ("vnet", w), ("vnet", v)))
    s = doc["settings"]
    return World(vnets, sites, lines, vpns, circuits, peerings, s["vpnTtlForSiteTraffic"] == "silentHop",
                 s["circuitVnetToVnet"]), ends


# ---------------------------------------------------------------- control plane

class Control:
    """The learned routes of all networks after convergence."""

    def __init__(self, world):
        self.w = w = world
        self.peers = {v: [] for v in w.vnets}
        for p in w.peerings:                      # P13: both objects are there; P17: and both let traffic pass
            back = [q for q in w.peerings if (q["from"], q["to"]) == (p["to"], p["from"])]
            if back and p["access"] and back[0]["access"]:
                self.peers[p["from"]].append(p["to"])
        self.hub_of, self.users = {}, {v: [] for v in w.vnets}
        for p in w.peerings:                      # P19, P20
            if p["use"] and any((q["from"], q["to"]) == (p["to"], p["from"]) and q["transit"] for q in w.peerings):
                self.hub_of[p["from"]] = p["to"]
                self.users[p["to"]].append(p["from"])
        self.settle_vpn()
        self.settle_circuits()

    def behind(self, v):
        """E5, G18: own ranges and those of the spokes that use the gateways."""
        return [p for n in (v, *self.users[v]) for p in self.w.vnets[n].ranges]

    def delivers(self, v, dst):
        """The VNet that v's gateways forward the packet to: v itself or a client (D9: no other peer)."""
        for n in (v, *self.users[v]):
            if any(dst in p for p in self.w.vnets[n].ranges):
                return n
        return None

    def settle_vpn(self):
        """heard[vnet or site end][connection] = {prefix: AS path}, to a fixed point."""
        w = self.w
        self.heard = {v: {} for v in w.vnets}
        self.told = {}                            # (site, edge) -> {connection: {prefix: path}}
        ups = [c for c in w.vpns if c.up]
        while True:
            before = deepcopy((self.heard, self.told))
            for c, me, peer in [(c, *ends) for c in ups for ends in ((c.a, c.b), (c.b, c.a))]:
                if me[0] == "site":
                    site = w.sites[me[1]]
                    said = {p: [site.asn] for p in site.export["vpn"]}
                else:
                    asn = w.vnets[me[1]].vpn["asn"]
                    said = {}
                    for other, routes in self.heard[me[1]].items():     # G18, G19; never from ExpressRoute (G20)
                        if other != c.name:
                            for p, path in routes.items():
                                if p not in said or len(path) + 1 < len(said[p]):
                                    said[p] = [asn, *path]
                    said.update({p: [asn] for p in self.behind(me[1])})
                if peer[0] == "vnet":
                    v = w.vnets[peer[1]]
                    taken = {p: path for p, path in said.items() if v.vpn["asn"] not in path       # G22
                             and not any(p.overlaps(q) for q in self.behind(peer[1]))}             # G20, G22
                    self.heard[peer[1]][c.name] = taken
                else:
                    asn = w.sites[peer[1]].asn
                    self.told.setdefault((peer[1], peer[2]), {})[c.name] = {
                        p: path for p, path in said.items() if asn not in path}
            if before == (self.heard, self.told):
                return

    def line(self, circuit, link):
        return next((x for x in self.w.lines if (x.circuit, x.link) == (circuit, link) and x.up), None)

    def settle_circuits(self):
        """er[vnet] = [(prefix, circuit, link, path)]."""
        w = self.w
        self.er = {v: [] for v in w.vnets}
        for c, linked in w.circuits.items():
            for link, v in itertools.product(("primary", "secondary"), linked):
                line = self.line(c, link)
                for p in w.sites[line.site].export["circuit"] if line else []:
                    self.er[v].append((p, c, link, [MSEE_ASN, w.sites[line.site].asn]))
                for other in linked if w.vnet_to_vnet else []:          # E6
                    if other != v:
                        self.er[v] += [(p, c, link, [MSEE_ASN, ER_ASN]) for p in self.behind(other)]

    # -- routing of a VNet (R7)

    def gateway_routes(self, v):
        """The gateway routes of a VNet: [(prefix, rank, path, way)], rank 0 ExpressRoute, 1 VPN."""
        hub = v if self.w.vnets[v].vpn or self.w.vnets[v].er else self.hub_of.get(v)
        if hub is None:
            return []
        routes = [(p, 0, path, ("er", hub, c, link)) for p, c, link, path in self.er[hub]]
        for conn, heard in self.heard[hub].items():
            routes += [(p, 1, path, ("vpn", hub, conn)) for p, path in heard.items()]
        own = [q for n in (v, hub) for q in self.w.vnets[n].ranges]
        return [r for r in routes if r[0] not in own]

    def lookup(self, v, dst):
        """[(way)]: ('vnet', name), ('er', hub, circuit, link) or ('vpn', hub, connection); equal ones together."""
        for n in (v, *self.peers[v]):             # R7 step 1
            if any(dst in p for p in self.w.vnets[n].ranges):
                return [("vnet", n)]
        fit = [r for r in self.gateway_routes(v) if dst in r[0]]
        if not fit:
            return []
        key = lambda r: (-r[0].prefixlen, r[1], len(r[2]))
        best = min(map(key, fit))
        return [r[3] for r in fit if key(r) == best]

    def in_tag(self, v, src):
        """N8: whether a source is in the VNet's VirtualNetwork tag."""
        known = [p for n in (v, *self.peers[v]) for p in self.w.vnets[n].ranges]
        known += [r[0] for r in self.gateway_routes(v)]
        return any(src in p for p in known)

    # -- routing of a VPN gateway for packets that arrive by VPN (G21)

    def transit(self, v, dst, came):
        fit = [(-p.prefixlen, len(path), conn) for conn, heard in self.heard[v].items() if conn != came
               for p, path in heard.items() if dst in p]
        return min(fit)[2] if fit else None

    # -- routing of a site

    def edge_routes(self, site, edge):
        """[(prefix, -preference, path length, way)] of a customer edge."""
        s, out = self.w.sites[site], []
        for x in self.w.lines:
            if (x.site, x.edge) == (site, edge) and x.up:
                for v in self.w.circuits[x.circuit]:
                    out += [(p, -s.preference["circuit"], 1, ("line", x.circuit, x.link)) for p in self.behind(v)]
        for conn, told in self.told.get((site, edge), {}).items():
            out += [(p, -s.preference["vpn"], len(path), ("vpn", conn)) for p, path in told.items()]
        return out

    def edge_lookup(self, site, edge, dst):
        fit = [(-p.prefixlen, lp, n, way) for p, lp, n, way in self.edge_routes(site, edge) if dst in p]
        if not fit:
            return []
        best = min(f[:3] for f in fit)
        ways = [f[3] for f in fit if f[:3] == best]
        assert len(ways) == 1 or self.w.sites[site].ecmp, f"{site} {edge}: the choice to {dst} is not determined"
        return ways

    def lan_lookup(self, site, dst):
        """The customer edges that the LAN router may choose."""
        s = self.w.sites[site]
        edges = [e for e, x in s.edges.items() if x["lan"]]
        if s.routes == "learned":
            longest = {e: max((r[0].prefixlen for r in self.edge_routes(site, e) if dst in r[0]), default=-1)
                       for e in edges}
            most = max(longest.values(), default=-1)
            edges = [e for e in edges if longest[e] == most >= 0]
        return edges if s.lan_ecmp else edges[:1]


# ---------------------------------------------------------------- data plane

@dataclass
class Step:
    answer: object                # address it would answer with; None: silent by rule
    node: tuple                   # who answers


class Walk:
    """All paths that a packet may take: [(delivered, [Step])]."""

    def __init__(self, control):
        self.c, self.w = control, control.w

    @staticmethod
    def then(step, rest):
        return [(ok, [step, *steps]) for ok, steps in rest]

    def network_of(self, address):
        for n, v in self.w.vnets.items():
            if any(address in p for p in v.ranges):
                return "vnet", n
        for n, s in self.w.sites.items():
            if any(address in p for p in s.prefixes + s.subnets):
                return "site", n
        raise ValueError(address)

    def start(self, src, dst):
        kind, name = self.network_of(src)
        return self.from_vnet(name, src, dst) if kind == "vnet" else self.from_site(name, src, dst)

    def deliver(self, v, src):
        return [(self.c.in_tag(v, src), [])]

    def from_vnet(self, v, src, dst):
        out = []
        for way in self.c.lookup(v, dst):
            if way[0] == "vnet":
                out += self.deliver(way[1], src)                                      # T2, D8
            elif way[0] == "er":                                                      # T4
                _, hub, circuit, link = way
                step = Step(self.w.vnets[hub].tunnel_ends[circuit, link], ("msee", circuit, link))
                out += self.then(step, self.msee(circuit, link, ("vnet", hub), src, dst))
            else:                                                                     # T5: the first one answers
                _, hub, conn = way
                step = Step(self.w.vnets[hub].vpn["hop"], ("vpngw", hub))
                out += self.then(step, self.tunnel(conn, ("vnet", hub), src, dst))
        return out or [(False, [])]

    def msee(self, circuit, link, came, src, dst):
        """At an edge of a circuit; came: ('vnet', hub), ('line',) or None for what it says itself."""
        line = self.c.line(circuit, link)
        if came and came[0] == "vnet" and not any(src in p for p in self.c.behind(came[1])):       # D10
            return [(False, [])]
        if came == ("line",) and not any(src in p for p in self.w.sites[line.site].export["circuit"]):
            return [(False, [])]
        if line and any(dst in p for p in self.w.sites[line.site].export["circuit"]) and came != ("line",):
            return self.into_edge(line.site, line.edge, line.customer, src, dst)
        for v in self.w.circuits[circuit]:
            if any(dst in p for p in self.c.behind(v)) and came != ("vnet", v):
                if came and came[0] == "vnet" and not self.w.vnet_to_vnet:
                    continue
                target = self.c.delivers(v, dst)
                return self.then(Step(None, ("ergw", v)), self.deliver(target, src))  # T4
        return [(False, [])]

    def tunnel(self, conn, me, src, dst):
        """Into a VPN connection at the end `me`."""
        c = next(x for x in self.w.vpns if x.name == conn and x.up)
        peer = c.b if c.a[:2] == me[:2] else c.a
        if peer[0] == "site":
            return self.into_edge(peer[1], peer[2], peer[3], src, dst)
        v = peer[1]
        if not any(src in p for p in self.c.heard[v][conn]):                          # D10, D16
            return [(False, [])]
        target = self.c.delivers(v, dst)
        if target:
            rest = self.deliver(target, src)
        else:
            onward = self.c.transit(v, dst, conn)                                     # G21
            rest = self.tunnel(onward, ("vnet", v), src, dst) if onward else [(False, [])]
        from_site = self.network_of(src)[0] == "site"
        if from_site and not self.w.silent_hop:                                       # T6
            return rest
        return self.then(Step(None, ("vpngw", v)), rest)                              # T5, T6: silent

    def into_edge(self, site, edge, ingress, src, dst):
        """From a provider into a customer edge, which carries no transit traffic."""
        s = self.w.sites[site]
        rest = [(False, [])]
        if s.edges[edge]["lan"] and any(dst in p for p in s.prefixes):
            rest = self.then(Step(s.edges[edge]["router_side"], ("site", site)), [(True, [])])
        return self.then(Step(ingress, ("edge", site, edge)), rest)

    def from_site(self, site, src, dst):
        s, out = self.w.sites[site], []
        for edge in self.c.lan_lookup(site, dst):
            out += self.then(Step(s.edges[edge]["lan"], ("edge", site, edge)), self.from_edge(site, edge, src, dst))
        return self.then(Step(s.router, ("site", site)), out or [(False, [])])

    def from_edge(self, site, edge, src, dst):
        out = []
        for way in self.c.edge_lookup(site, edge, dst):
            if way[0] == "line":
                line = self.c.line(*way[1:])
                out += self.then(Step(line.provider, ("msee", *way[1:])),
                                 self.msee(*way[1:], ("line",), src, dst))
            else:
                out += self.tunnel(way[1], ("site", site, edge), src, dst)
        return out or [(False, [])]

    # -- the prober's view (T3)

    def routable(self, prober, address):
        kind, name = self.network_of(prober)
        if kind == "vnet":
            return bool(self.c.lookup(name, address))
        s = self.w.sites[name]
        return any(address in p for p in s.prefixes + s.subnets) or bool(
            s.routes == "learned" and self.c.lan_lookup(name, address)
            or any(self.c.edge_lookup(name, e, address) for e in self.c.lan_lookup(name, address)))

    def answers(self, step, prober):
        """Whether a router's answer reaches the prober."""
        if step.answer is None or not self.routable(prober, step.answer):
            return False
        kind, name = self.network_of(prober)
        node = step.node
        if node[0] in ("site", "edge") and (kind, name) == ("site", node[1]):
            return True
        if node[0] == "msee":
            paths = self.msee(*node[1:], None, step.answer, prober)
        elif node[0] == "vpngw":
            target = self.c.delivers(node[1], prober)
            paths = self.deliver(target, step.answer) if target else [(False, [])]
        elif node[0] == "edge":
            paths = self.from_edge(*node[1:], step.answer, prober)
        else:
            paths = self.from_site(node[1], step.answer, prober)
        return all(ok for ok, _ in paths)

    def row(self, src, dst):
        """The hop lists, or none."""
        there, back = self.start(src, dst), self.start(dst, src)
        oks = [ok for ok, _ in there + back]
        if not all(oks):
            one_way = all(ok for ok, _ in there) or all(ok for ok, _ in back)
            partly = any(ok for ok, _ in there) and not all(ok for ok, _ in there)
            return [], ("one way" if one_way else "") + (" partly" if partly else "")
        lists = []
        for _, steps in there:
            seen = [str(s.answer) if self.answers(s, src) else "*" for s in steps]
            if (hops := [*seen, str(dst)]) not in lists:
                lists.append(hops)
        return lists, ""


# ---------------------------------------------------------------- comparing and printing

def vm(world, name):
    return (world.vnets.get(name) or world.sites[name]).vm


def compare(title, world, rows, names=lambda x: x, everything=False):
    walk, wrong = Walk(Control(world)), 0
    for r in rows:
        got, _ = walk.row(vm(world, names(r["from"])), vm(world, names(r["to"])))
        want = [[str(h) for h in x] for x in [r.get("hops", []), *r.get("alternatives", [])] if x]
        if sorted(got) != sorted(want) or bool(got) != r["reachable"]:
            wrong += 1
            print(f"  DIFFERS {r['from']} → {r['to']}: file {want}, model {got}")
    print(f"{title}: {len(rows)} rows, {wrong} differ")
    return wrong


def print_rows(world, only=None):
    walk, names = Walk(Control(world)), [*world.vnets, *world.sites]
    for a, b in itertools.permutations(names, 2):
        got, why = walk.row(vm(world, a), vm(world, b))
        if only is None or only[a, b] != (got, why):
            print(f"  {a:8} → {b:8} " + ("  or  ".join(" → ".join(x) for x in got) or f"no {why}"))


def all_rows(world):
    walk, names = Walk(Control(world)), [*world.vnets, *world.sites]
    return {(a, b): walk.row(vm(world, a), vm(world, b)) for a, b in itertools.permutations(names, 2)}


def print_control(world):
    c = Control(world)
    for v in world.vnets:
        rows = [(p, "VnetLocal", "active") for p in world.vnets[v].ranges]
        rows += [(p, f"peering {n}", "active") for n in c.peers[v] for p in world.vnets[n].ranges]
        covered = [r[0] for r in rows]
        for p, rank, path, way in c.gateway_routes(v):
            best = min((r[1], len(r[2])) for r in c.gateway_routes(v) if r[0] == p)
            state = "active" if (rank, len(path)) == best else "standby"
            if any(p.subnet_of(q) for q in covered):
                state = "not used (R7 step 1)"
            rows.append((p, " ".join(way) + f" {path}", state))
        for r in rows:
            print(f"  {v:8} {str(r[0]):18} {r[1]:52} {r[2]}")
    for s in world.sites:
        for e in world.sites[s].edges:
            routes = c.edge_routes(s, e)
            for p, lp, n, way in sorted(routes, key=lambda r: (r[0], r[1])):
                best = min(r[1:3] for r in routes if r[0] == p)
                print(f"  {s:8} {str(p):18} {e} {' '.join(way):46} {'active' if (lp, n) == best else 'standby'}")


def with_actions(world, actions):
    world = deepcopy(world)
    for a in actions:
        up = a["action"] == "up"
        if "line" in a:
            c, link = a["line"].split()
            [x] = [x for x in world.lines if (x.site, x.edge, x.circuit, x.link) == (a["site"], a["router"], c, link)]
            x.up = up
        else:
            [x] = [x for x in world.vpns if x.name == a["tunnel"]]
            x.up = up
    return world


def check_reference(path):
    doc = yaml.safe_load(open(path))
    world = from_reference(doc)
    wrong = compare("reference, steady state", world, doc["expected"])
    t = doc["failover"]["trigger"]
    line = next(x for x in world.lines if (x.site, x.edge) == (t["network"], t["ce"]))
    cut = with_actions(world, [{"site": t["network"], "router": t["ce"], "line": f"{line.circuit} {line.link}",
                                "action": "down"}])
    wrong += compare("reference, failover", cut, doc["failover"]["expected"])
    # Pairs without a row of the failover keep their steady-state rows.
    before, after = all_rows(world), all_rows(cut)
    listed = {(r["from"], r["to"]) for r in doc["failover"]["expected"]}
    moved = [p for p in before if before[p] != after[p] and p not in listed]
    print(f"reference, failover: changed but not listed: {moved}")
    # The best routes of the file.
    control = Control(world)
    for name, routes in doc["routes"].items():
        want = {(str(r["prefix"]), r.get("circuit") or r.get("connection") or "") for r in routes
                if r["via"] not in ("VnetLocal", "VNetPeering", "local") and (r.get("circuit") or r.get("connection"))}
        if name in world.vnets:
            got = {(str(p), w[2]) for p, _, _, w in control.gateway_routes(name)}
        else:
            got = {(str(r[0]), r[3][1]) for e in world.sites[name].edges for r in control.edge_routes(name, e)}
        if name in control.hub_of:                # the file names the gateways only
            want, got = ({x for x, _ in s} for s in ({(str(r["prefix"]), "") for r in routes
                                                     if r["via"] == "VirtualNetworkGateway"}, got))
        wrong += want != got
        print(f"reference, routes of {name}: {'same' if want == got else f'file {want}, model {got}'}")
    return wrong + len(moved)


def check_topology(path, tables):
    doc = yaml.safe_load(open(path))
    world, ends = from_topology(doc)
    wrong = compare(f"{doc['name']}, steady state", world, doc["expected"], ends.get)
    pairs = {(ends[r["from"]], ends[r["to"]]) for r in doc["expected"]}
    missing = [p for p in itertools.permutations([*world.vnets, *world.sites], 2) if p not in pairs]
    print(f"{doc['name']}: pairs without a row: {missing}")
    before = all_rows(world)
    if tables:
        print("control plane"), print_control(world)
        print("rows"), print_rows(world)
    for name, event in doc["events"].items():
        changed = with_actions(world, event["actions"])
        wrong += compare(f"{doc['name']}, {name}", changed, event["expected"], ends.get)
        after = all_rows(changed)
        moved = {p for p in before if before[p] != after[p]}
        listed = {(ends[r["from"]], ends[r["to"]]) for r in event["expected"]}
        print(f"{doc['name']}, {name}: changed but not listed {sorted(moved - listed)}, "
              f"listed but not changed {sorted(listed - moved)}")
        wrong += len(moved - listed)
        if tables:
            print("control plane"), print_control(changed)
            print("rows that change"), print_rows(changed, before)
    if tables:
        other_prefixes(world, doc["events"])
    return wrong


def other_prefixes(world, events):
    """The traces of hypothetical hosts in site prefixes without a host in the file."""
    for s, site in world.sites.items():
        for p in site.prefixes:
            if site.vm in p:
                continue
            address = p.network_address + 4
            for name, w in [("steady", world)] + [(n, with_actions(world, e["actions"])) for n, e in events.items()]:
                walk = Walk(Control(w))
                print(f"a host {address} in {s}, {name}")
                for n in [*w.vnets, *(x for x in w.sites if x != s)]:
                    for a, b, arrow in ((vm(w, n), address, "→"), (address, vm(w, n), "←")):
                        got, why = walk.row(a, b)
                        print(f"  {n:8} {arrow} " + ("  or  ".join(" → ".join(x) for x in got) or f"no {why}"))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--reference", action="append", default=[])
    parser.add_argument("--topology", action="append", default=[])
    parser.add_argument("--tables", action="store_true")
    args = parser.parse_args()
    wrong = sum(check_reference(p) for p in args.reference)
    wrong += sum(check_topology(p, args.tables) for p in args.topology)
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
