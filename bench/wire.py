"""What an eavesdropper on the bridge between the pods sees, from before the first request on: whether it is TLS, what was
agreed, and whether a client without a sidecar is let in. It needs no help from a proxy."""
import socket, time
from lab import HTTP1, IP, TCP_HTTP, Inside, status

GROUPS = {23: "P-256", 24: "P-384", 29: "X25519", 4588: "X25519MLKEM768"}
CIPHERS = {0x1301: "AES_128_GCM", 0x1302: "AES_256_GCM", 0x1303: "CHACHA20"}
PACKET_SOCKET_ALL = socket.htons(3)
SO_RCVBUFFORCE = 33


def number(some):
    return int.from_bytes(some, "big")


def server_hello(record):
    """(cipher, group, resumed) of a TLS 1.3 ServerHello, or None."""
    if len(record) < 50 or record[0] != 22 or record[5] != 2:
        return None
    hello = record[9:]
    at = 34 + 1 + hello[34]
    cipher, at = number(hello[at:at + 2]), at + 3
    end, at, group, resumed = at + 2 + number(hello[at:at + 2]), at + 2, None, False
    while at + 4 <= end:
        extension, length = number(hello[at:at + 2]), number(hello[at + 2:at + 4])
        if extension == 51:
            group = number(hello[at + 4:at + 6])
        resumed |= extension == 41
        at += 4 + length
    return CIPHERS.get(cipher, hex(cipher)), GROUPS.get(group, str(group)), resumed


class Wire:
    def __init__(self):
        with Inside("control"):
            self.packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, PACKET_SOCKET_ALL)
            self.packets.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
            self.packets.bind(("v-server", 0))

    def look(self):
        with Inside("client"):
            through = [status(IP["server"], port) for port in (HTTP1, TCP_HTTP, TCP_HTTP)]
        time.sleep(0.1)
        seen = {"through": through, "tls": False, "plaintext": False}
        hellos = []
        self.packets.setblocking(False)
        try:
            while True:
                frame = self.packets.recv(65536)
                if frame[12:14] != b"\x08\x00" or frame[23] != 6:
                    continue
                ip = frame[14:]
                if socket.inet_aton(IP["client"]) not in (ip[12:16], ip[16:20]):
                    continue
                tcp = ip[(ip[0] & 15) * 4:number(ip[2:4])]
                payload = tcp[(tcp[12] >> 4) * 4:]
                seen["plaintext"] |= b"x" * 64 in payload or b"HTTP/1.1" in payload
                seen["tls"] |= payload[:3] in (b"\x17\x03\x03", b"\x16\x03\x01", b"\x16\x03\x03")
                hello = server_hello(payload)
                if hello:
                    hellos.append(hello)
        except BlockingIOError:
            pass
        self.packets.close()
        with Inside("control"):
            seen["without_sidecar"] = status(IP["server"], HTTP1)
        return {**seen, "handshakes": len(hellos), "resumed": sum(hello[2] for hello in hellos),
                "ciphers": sorted({hello[0] for hello in hellos}), "groups": sorted({hello[1] for hello in hellos})}
