"""A name server of one test, which can be slow, and processes that ask it. Needs root that may mount."""

import os
import socket
import struct
import threading


class NameServer:
    """Answers for IPv4 addresses of `names`: {"db.test": "127.0.0.1"}; for all else that there is
    no such name. While `silent` it takes questions and answers none."""

    def __init__(self, folder, names):
        self.names = names
        self.silent = False
        self.asked = 0
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        # An address of its own: resolvers know no port but 53.
        self.address = f"127.53.{os.getpid() >> 8 & 255}.{os.getpid() & 255 or 1}"
        self.socket.bind((self.address, 53))
        folder.mkdir()
        self.files = {
            "/etc/resolv.conf": folder / "resolv.conf",
            "/etc/nsswitch.conf": folder / "nsswitch.conf",
        }
        self.files["/etc/resolv.conf"].write_text(f"nameserver {self.address}\n")
        self.files["/etc/nsswitch.conf"].write_text("passwd: files\ngroup: files\nhosts: files dns\n")
        threading.Thread(target=self._serve, daemon=True).start()

    def wrapper(self):
        """The command before one whose names are to be looked up here."""
        binds = "".join(f"mount --bind '{ours}' {theirs} && " for theirs, ours in self.files.items())
        return ["unshare", "-m", "sh", "-c", binds + 'exec "$@"', "sh"]

    def _serve(self):
        while True:
            try:
                question, sender = self.socket.recvfrom(4096)
            except OSError:
                return
            self.asked += 1
            if not self.silent:
                self.socket.sendto(self._answer(question), sender)

    def _answer(self, question):
        labels, at = [], 12
        while n := question[at]:
            labels.append(question[at + 1 : at + 1 + n].decode())
            at += 1 + n
        (kind,) = struct.unpack_from(">H", question, at + 1)
        end = at + 5
        address = self.names.get(".".join(labels).lower())
        found = address is not None and kind == 1
        code = 0 if address is not None else 3
        head = question[:2] + struct.pack(">HHHHH", 0x8180 | code, 1, int(found), 0, 0)
        answer = struct.pack(">HHHIH", 0xC00C, 1, 1, 0, 4) + socket.inet_aton(address) if found else b""
        return head + question[12:end] + answer

    def close(self):
        self.socket.close()
