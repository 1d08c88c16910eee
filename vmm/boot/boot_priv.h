/* What the loaders share among themselves. */
#ifndef VMM_BOOT_PRIV_H
#define VMM_BOOT_PRIV_H

#include <elf.h>

#include "vmm/boot/boot.h"
#include "vmm/boot/layout.h"

enum { BOOT_MAX_SEGMENTS = 64 };

/* A loadable segment, widths unified. */
struct elf_segment {
  uint64_t gpa, memsz, offset, filesz;
};

struct elf_image {
  const uint8_t *data;
  size_t len;
  bool is64;
  uint64_t entry; /* physical */
  bool has_pvh;
  uint32_t pvh_entry;
  unsigned count;
  struct elf_segment seg[BOOT_MAX_SEGMENTS];
  uint64_t lowest, end; /* of all segments */
};

/* Linux's setup header (Linux: Documentation/arch/x86/boot.rst) reduced to what a loader decides on. */
struct linux_header {
  uint16_t version;
  bool is64; /* XLF_KERNEL_64: has the 64-bit entry at 0x200 */
  bool relocatable;
  uint32_t cmdline_max;
  uint64_t load, need;          /* preferred load address; bytes of memory needed there */
  uint64_t initrd_max;          /* highest address that an initrd may occupy */
  size_t code_offset, code_len; /* protected-mode part in the file */
};

struct boot_image {
  const struct boot_format *format;
  uint8_t *data; /* the file, or the unpacked payload */
  size_t len;
  char text[160];
  uint8_t setup[0x300]; /* bzImage: the first bytes of the file, which hold the setup header */
  struct linux_header linux_hdr;
  struct elf_image elf;
  bool is_elf; /* data is an ELF (also the payload of a bzImage) */
  uint32_t mb_offset;
};

/* One kernel format.  probe: whether the bytes are this format at all (cheap).  open: checks, fills image; -1 and err. */
struct boot_format {
  const char *name;
  bool (*probe)(const uint8_t *data, size_t len);
  int (*open)(struct boot_image *image, const uint8_t *data, size_t len, char *err);
  int (*load)(const struct boot_image *image, const struct boot_request *req, struct boot_entry *entry, char *err);
};

extern const struct boot_format boot_format_bzimage;
extern const struct boot_format boot_format_pvh;
extern const struct boot_format boot_format_multiboot;
extern const struct boot_format boot_format_elf;

/* Formats the sentence, returns -1. */
int boot_fail(char *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* elf.c */
int elf_parse(struct elf_image *elf, const uint8_t *data, size_t len, char *err);
int elf_place(const struct elf_image *elf, const struct boot_ram *ram, char *err);

/* place.c: the pieces every loader needs. */
bool ranges_overlap(uint64_t a, uint64_t alen, uint64_t b, uint64_t blen);
int boot_copy_in(const struct boot_ram *ram, uint64_t gpa, const void *data, uint64_t filesz, uint64_t memsz, const char *what,
                 char *err);
int boot_place_cmdline(const struct boot_request *req, uint32_t max, char *err);
/* Puts the initrd as high as it goes below limit, above floor.  *gpa is 0 without an initrd. */
int boot_place_initrd(const struct boot_request *req, uint64_t floor, uint64_t limit, uint64_t *gpa, char *err);
void boot_enter_prot32(const struct boot_request *req, uint64_t rip, struct boot_entry *entry);
void boot_enter_long64(const struct boot_request *req, uint64_t rip, struct boot_entry *entry);

/* The memory map, as e820 types (1 RAM, 2 reserved). */
struct memmap_entry {
  uint64_t gpa, len;
  uint32_t type;
};
enum { MEMMAP_RAM = 1, MEMMAP_RESERVED = 2, MEMMAP_MAX = 16 };
unsigned boot_memmap(const struct boot_request *req, struct memmap_entry map[MEMMAP_MAX]);

/* linux_params.c: the zero page; setup is NULL for a kernel without a setup header. */
void linux_fill_zero_page(const struct boot_request *req, const uint8_t *setup, uint64_t initrd);

/* unpack.c: the payload of a compressed kernel.  *name says the method (or "unknown"); NULL when it cannot be unpacked. */
uint8_t *unpack_payload(const uint8_t *data, size_t len, size_t *out_len, const char **name);

static inline uint16_t get16(const uint8_t *p) {
  return (uint16_t)(p[0] | p[1] << 8);
}
static inline uint32_t get32(const uint8_t *p) {
  return get16(p) | (uint32_t)get16(p + 2) << 16;
}
static inline uint64_t get64(const uint8_t *p) {
  return get32(p) | (uint64_t)get32(p + 4) << 32;
}

#endif
