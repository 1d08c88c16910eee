/* Reads symbols and finds them by address. */
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include "base/log.h"
#include "x86/translate/symbols.h"

struct symbol {
  u64 address;
  u32 name;  /* offset into names */
  u32 order; /* in the file: of several at one address the first one counts */
};

struct symbols {
  struct symbol *list; /* by address */
  size_t n, room;
  char *names;
  size_t used, names_room;
};

struct image {
  const u8 *data;
  size_t size;
};

/* ---- collecting ---- */

static bool grow(void **p, size_t *room, size_t need, size_t item) {
  if (need <= *room) return true;
  size_t n = MAX(need, *room * 2);
  void *more = reallocarray(*p, n, item);
  if (!more) return false;
  *p = more;
  *room = n;
  return true;
}

static bool add(struct symbols *s, u64 address, const char *name, size_t len) {
  if (!len || len > GUEST_NAME_MAX - 32 || s->n == UINT32_MAX || s->used + len + 1 > UINT32_MAX) return true;
  if (!grow((void **)&s->list, &s->room, s->n + 1, sizeof(*s->list)) ||
      !grow((void **)&s->names, &s->names_room, s->used + len + 1, 1))
    return false;
  s->list[s->n] = (struct symbol){.address = address, .name = (u32)s->used, .order = (u32)s->n};
  s->n++;
  memcpy(s->names + s->used, name, len);
  s->names[s->used + len] = 0;
  s->used += len + 1;
  return true;
}

/* "ffffffff81000000 T _text", and what kallsyms writes behind it.  Absolute symbols are numbers, not places. */
static bool read_line(struct symbols *s, const char *line) {
  u64 address;
  char type, name[GUEST_NAME_MAX];
  if (sscanf(line, "%" SCNx64 " %c %127s", &address, &type, name) != 3 || !address || strchr("aAU", type)) return true;
  return add(s, address, name, strlen(name));
}

static bool read_text(struct symbols *s, struct image m) {
  char line[512];
  for (size_t at = 0; at < m.size;) {
    const u8 *end = memchr(m.data + at, '\n', m.size - at);
    size_t len = end ? (size_t)(end - m.data) - at : m.size - at;
    snprintf(line, sizeof(line), "%.*s", (int)MIN(len, sizeof(line) - 1), (const char *)m.data + at);
    if (!read_line(s, line)) return false;
    at += len + 1;
  }
  return true;
}

/* A section's bytes; empty where they are not in the file. */
static struct image section(struct image m, const Elf64_Shdr *h) {
  if (h->sh_type == SHT_NOBITS || h->sh_offset > m.size || h->sh_size > m.size - h->sh_offset) return (struct image){0};
  return (struct image){.data = m.data + h->sh_offset, .size = h->sh_size};
}

static bool read_table(struct symbols *s, struct image table, struct image names) {
  for (size_t at = 0; at + sizeof(Elf64_Sym) <= table.size; at += sizeof(Elf64_Sym)) {
    Elf64_Sym y;
    memcpy(&y, table.data + at, sizeof(y));
    unsigned type = ELF64_ST_TYPE(y.st_info);
    if (type > STT_FUNC || y.st_shndx == SHN_UNDEF || y.st_shndx == SHN_ABS || y.st_name >= names.size) continue;
    const char *name = (const char *)names.data + y.st_name;
    if (!add(s, y.st_value, name, strnlen(name, names.size - y.st_name))) return false;
  }
  return true;
}

static bool read_elf(struct symbols *s, struct image m) {
  Elf64_Ehdr e;
  Elf64_Shdr h, strings;
  memcpy(&e, m.data, sizeof(e));
  if (e.e_shentsize != sizeof(h) || e.e_shoff > m.size || (m.size - e.e_shoff) / sizeof(h) < e.e_shnum) return true;
  for (unsigned n = 0; n < e.e_shnum; n++) {
    memcpy(&h, m.data + e.e_shoff + n * sizeof(h), sizeof(h));
    if (h.sh_type != SHT_SYMTAB || h.sh_link >= e.e_shnum) continue;
    memcpy(&strings, m.data + e.e_shoff + h.sh_link * sizeof(h), sizeof(h));
    if (!read_table(s, section(m, &h), section(m, &strings))) return false;
  }
  return true;
}

static int compare(const void *a, const void *b) {
  const struct symbol *x = a, *y = b;
  if (x->address != y->address) return x->address < y->address ? -1 : 1;
  return x->order < y->order ? -1 : 1;
}

/* ---- life ---- */

static bool is_elf64(struct image m) {
  return m.size >= sizeof(Elf64_Ehdr) && !memcmp(m.data, ELFMAG, SELFMAG) && m.data[EI_CLASS] == ELFCLASS64 &&
         m.data[EI_DATA] == ELFDATA2LSB;
}

static int read_image(struct symbols *s, struct image m) {
  bool read = is_elf64(m) ? read_elf(s, m) : read_text(s, m);
  if (!read) return ENOMEM;
  if (!s->n) return ENOEXEC;
  qsort(s->list, s->n, sizeof(*s->list), compare);
  return 0;
}

static int read_file(struct symbols *s, const char *path) {
  struct stat st;
  int fd = open(path, O_RDONLY | O_CLOEXEC), err = 0;
  if (fd < 0 || fstat(fd, &st)) err = errno;
  if (!err && !S_ISREG(st.st_mode)) err = ENOEXEC;
  struct image m = {.size = err ? 0 : (size_t)st.st_size};
  if (!err && !m.size) err = ENOEXEC;
  if (!err) {
    void *p = mmap(NULL, m.size, PROT_READ, MAP_PRIVATE, fd, 0);
    m.data = p;
    err = p == MAP_FAILED ? errno : read_image(s, m);
    if (p != MAP_FAILED) munmap(p, m.size);
  }
  if (fd >= 0) close(fd);
  return err;
}

struct symbols *symbols_load(const char *path) {
  struct symbols *s = calloc(1, sizeof(*s));
  int err = s ? read_file(s, path) : ENOMEM;
  if (!err) return s;
  symbols_free(s);
  log_warn("no symbols from %s: %s", path,
           err == ENOEXEC ? "neither a System.map nor an ELF file with a symbol table" : strerror(err));
  return NULL;
}

void symbols_free(struct symbols *s) {
  if (!s) return;
  free(s->list);
  free(s->names);
  free(s);
}

/* ---- finding ---- */

/* The last symbol at or below; what lies behind the last one of all is nobody's. */
static const struct symbol *find(const struct symbols *s, u64 address) {
  size_t lo = 0, hi = s->n;
  while (lo < hi) {
    size_t mid = (lo + hi) / 2;
    if (s->list[mid].address <= address)
      lo = mid + 1;
    else
      hi = mid;
  }
  if (!lo || (lo == s->n && s->list[lo - 1].address != address)) return NULL;
  const struct symbol *y = &s->list[lo - 1];
  while (y > s->list && y[-1].address == y->address) y--;
  return y;
}

void symbols_name(const struct symbols *s, u64 address, char name[GUEST_NAME_MAX]) {
  const struct symbol *y = s ? find(s, address) : NULL;
  if (!y)
    snprintf(name, GUEST_NAME_MAX, "guest:%" PRIx64, address);
  else if (y->address == address)
    snprintf(name, GUEST_NAME_MAX, "guest:%s", s->names + y->name);
  else
    snprintf(name, GUEST_NAME_MAX, "guest:%s+%" PRIx64, s->names + y->name, address - y->address);
}
