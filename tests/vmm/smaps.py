"""Where the resident memory of a process is: /proc/PID/smaps by what a mapping is for."""
import re

GROUPS = (  # of `uvirt run`: by the mapping's name; the first that fits
    ("translated code", r"memfd:uvirt-(translations|code)"),
    ("other shared memory", r"memfd:|/dev/zero"),
    ("malloc", r"\[heap\]"),
    ("stack", r"\[stack"),
    ("programs and libraries", r"/|\[v"),
    ("other anonymous memory", r""),
)


def mappings(pid):
    """[(KiB in all, name, {field: KiB})]"""
    found = []
    with open(f"/proc/{pid}/smaps") as f:
        for line in f:
            head = re.match(r"[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \d+ *(.*)", line)
            field = re.match(r"(\w+): +(\d+) kB", line)
            if head:
                found.append((head.group(1), {}))
            elif field:
                found[-1][1][field.group(1)] = int(field.group(2))
    return [(fields["Size"], name, fields) for name, fields in found]


def resident(pid, memory):
    """{group: KiB} with the guest's memory (`memory` bytes in one anonymous mapping) as "guest".  A page that is mapped twice counts once."""
    sizes = {"guest": 0, **{name: 0 for name, _ in GROUPS}}
    for size, name, fields in mappings(pid):
        if size == memory >> 10 and not name and not sizes["guest"]:
            sizes["guest"] = fields["Rss"]
            continue
        group = next(group for group, pattern in GROUPS if re.search(pattern, name))
        sizes[group] += fields["Rss"] // 2 if group == "translated code" else fields["Rss"]
    assert sizes["guest"], f"no mapping of {memory >> 20} MiB"
    return sizes
