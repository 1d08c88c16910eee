/* Multiboot 1 kernels (Multiboot Specification 0.6.96), as ELF or with load addresses in the header. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/boot/boot_priv.h"

enum {
  MB_MAGIC = 0x1badb002,
  MB_BOOTLOADER_MAGIC = 0x2badb002,
  MB_SEARCH = 8192, /* 3.1: the header is within the first 8 KiB, on a 4-byte boundary */
};
enum { MB_NEEDS_VIDEO = 1 << 2, MB_HAS_ADDRESSES = 1 << 16, MB_KNOWN_REQUIREMENTS = 0x7 };

/* The header's fields, 3.1.1. */
struct mb_header {
  uint32_t magic, flags, checksum;
  uint32_t header_addr, load_addr, load_end_addr, bss_end_addr, entry_addr;
};

static bool find_header(const uint8_t *data, size_t len, uint32_t *offset) {
  size_t end = len < MB_SEARCH ? len : MB_SEARCH;
  for (size_t i = 0; i + 12 <= end; i += 4)
    if (get32(data + i) == MB_MAGIC && get32(data + i) + get32(data + i + 4) + get32(data + i + 8) == 0) {
      *offset = (uint32_t)i;
      return true;
    }
  return false;
}

static bool mb_probe(const uint8_t *data, size_t len) {
  uint32_t offset;
  return find_header(data, len, &offset);
}

/* Reads the address fields into one segment, 3.1.3. */
static int open_with_addresses(struct elf_image *seg, const uint8_t *data, size_t len, uint32_t offset, char *err) {
  struct mb_header h;
  if (len - offset < sizeof(h)) return boot_fail(err, "the multiboot kernel is truncated: its header is incomplete");
  memcpy(&h, data + offset, sizeof(h));
  if (h.load_addr > h.header_addr || h.header_addr - h.load_addr > offset)
    return boot_fail(err, "the multiboot kernel's load address does not agree with the place of its header");
  uint64_t start = offset - (h.header_addr - h.load_addr);
  if (h.load_end_addr && h.load_end_addr < h.load_addr) return boot_fail(err, "the multiboot kernel ends before it begins");
  uint64_t filesz = h.load_end_addr ? h.load_end_addr - h.load_addr : len - start;
  if (filesz > len - start)
    return boot_fail(err, "the multiboot kernel is truncated: its header announces more than the file has");
  uint64_t memsz = h.bss_end_addr > h.load_addr ? h.bss_end_addr - h.load_addr : filesz;
  if (memsz < filesz) memsz = filesz;
  if (h.entry_addr < h.load_addr || h.entry_addr - h.load_addr >= memsz)
    return boot_fail(err, "the multiboot kernel's entry point 0x%x is outside of what is loaded", h.entry_addr);
  *seg = (struct elf_image){
      .data = data, .len = len, .entry = h.entry_addr, .count = 1, .lowest = h.load_addr, .end = h.load_addr + memsz};
  seg->seg[0] = (struct elf_segment){h.load_addr, memsz, start, filesz};
  return 0;
}

static int mb_open(struct boot_image *image, const uint8_t *data, size_t len, char *err) {
  uint32_t offset = 0;
  find_header(data, len, &offset);
  uint32_t flags = get32(data + offset + 4);
  /* 3.1.2: flags 0-15 are requirements that a loader refuses when it does not know them. */
  if (flags & 0xffff & ~MB_KNOWN_REQUIREMENTS)
    return boot_fail(err, "the multiboot kernel requires features 0x%x that uvirt does not have", flags & 0xfff8);
  if (flags & MB_NEEDS_VIDEO)
    return boot_fail(err, "the multiboot kernel requires a video mode, and this machine has no display");
  if (flags & MB_HAS_ADDRESSES) {
    if (open_with_addresses(&image->elf, data, len, offset, err)) return -1;
  } else if (len < 4 || memcmp(data, ELFMAG, SELFMAG) != 0) {
    return boot_fail(err, "the multiboot kernel is neither an ELF file nor gives its load addresses");
  } else if (elf_parse(&image->elf, data, len, err)) {
    return -1;
  }
  image->data = malloc(len);
  if (!image->data) return boot_fail(err, "out of memory");
  memcpy(image->data, data, len);
  image->len = len;
  image->elf.data = image->data;
  image->mb_offset = offset;
  snprintf(image->text, sizeof(image->text), "multiboot 1%s", flags & MB_HAS_ADDRESSES ? "" : ", ELF");
  return 0;
}

/* Multiboot information, 3.3, and what it points to. */
struct mb_info {
  uint32_t flags, mem_lower, mem_upper, boot_device, cmdline, mods_count, mods_addr, syms[4], mmap_length, mmap_addr;
  uint32_t drives_length, drives_addr, config_table, boot_loader_name;
};
struct mb_module {
  uint32_t start, end, string, reserved;
};
struct mb_mmap {
  uint32_t size;
  uint64_t gpa, len;
  uint32_t type;
} __attribute__((packed));
struct mb_block {
  struct mb_info info;
  struct mb_module module;
  char loader[8], module_name[8];
  struct mb_mmap map[MEMMAP_MAX];
};
enum { MBI_MEMORY = 1 << 0, MBI_CMDLINE = 1 << 2, MBI_MODS = 1 << 3, MBI_MMAP = 1 << 6, MBI_LOADER_NAME = 1 << 9 };

static int mb_load(const struct boot_image *image, const struct boot_request *req, struct boot_entry *entry, char *err) {
  uint64_t initrd;
  if (elf_place(&image->elf, req->ram, err)) return -1;
  if (boot_place_cmdline(req, LAYOUT_CMDLINE_MAX - 1, err)) return -1;
  if (boot_place_initrd(req, image->elf.end, LAYOUT_HOLE_START, &initrd, err)) return -1;
  struct memmap_entry map[MEMMAP_MAX];
  unsigned entries = boot_memmap(req, map);
  uint64_t upper = req->ram->piece[0].len - LAYOUT_HIGH;
  struct mb_block block = {
      .info = {.flags = MBI_MEMORY | MBI_CMDLINE | MBI_MODS | MBI_MMAP | MBI_LOADER_NAME,
               .mem_lower = LAYOUT_EBDA / 1024,
               .mem_upper = (uint32_t)(upper / 1024),
               .cmdline = LAYOUT_CMDLINE,
               .mods_count = initrd != 0,
               .mods_addr = LAYOUT_MBI + offsetof(struct mb_block, module),
               .mmap_length = entries * sizeof(struct mb_mmap),
               .mmap_addr = LAYOUT_MBI + offsetof(struct mb_block, map),
               .boot_loader_name = LAYOUT_MBI + offsetof(struct mb_block, loader)},
      .module = {(uint32_t)initrd, (uint32_t)(initrd + req->initrd_len), LAYOUT_MBI + offsetof(struct mb_block, module_name), 0},
      .loader = "uvirt",
      .module_name = "initrd",
  };
  for (unsigned i = 0; i < entries; i++)
    block.map[i] =
        (struct mb_mmap){.size = sizeof(struct mb_mmap) - 4, .gpa = map[i].gpa, .len = map[i].len, .type = map[i].type};
  memcpy(boot_ram_at(req->ram, LAYOUT_MBI, sizeof(block)), &block, sizeof(block));
  boot_enter_prot32(req, image->elf.entry, entry); /* 3.2: 32-bit flat, paging off, %eax magic, %ebx information */
  entry->rax = MB_BOOTLOADER_MAGIC;
  entry->rbx = LAYOUT_MBI;
  return 0;
}

const struct boot_format boot_format_multiboot = {"multiboot", mb_probe, mb_open, mb_load};
