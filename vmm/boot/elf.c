/* ELF kernels: parsing, placing, and the loader for plain ones (64-bit vmlinux or bare-metal programs). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/boot/boot_priv.h"

#define XEN_ELFNOTE_PHYS32_ENTRY 18 /* Xen: public/elfnote.h; the PVH entry point */

/* The fields of a program header that matter, of either class. */
struct phdr {
  uint32_t type;
  uint64_t offset, vaddr, paddr, filesz, memsz;
};

static struct phdr read_phdr(const struct elf_image *elf, const uint8_t *p) {
  struct phdr h;
  if (elf->is64) {
    Elf64_Phdr ph;
    memcpy(&ph, p, sizeof(ph));
    h = (struct phdr){ph.p_type, ph.p_offset, ph.p_vaddr, ph.p_paddr, ph.p_filesz, ph.p_memsz};
  } else {
    Elf32_Phdr ph;
    memcpy(&ph, p, sizeof(ph));
    h = (struct phdr){ph.p_type, ph.p_offset, ph.p_vaddr, ph.p_paddr, ph.p_filesz, ph.p_memsz};
  }
  return h;
}

/* ELF notes: name size, descriptor size, type, then name and descriptor, each padded to 4 bytes (ELF gABI, "Note Section"). */
static void scan_notes(struct elf_image *elf, const uint8_t *p, size_t len) {
  while (len >= 12) {
    uint32_t namesz = get32(p), descsz = get32(p + 4), type = get32(p + 8);
    uint64_t name_pad = ((uint64_t)namesz + 3) & ~3ull, desc_pad = ((uint64_t)descsz + 3) & ~3ull;
    if (name_pad > len - 12 || descsz > len - 12 - name_pad) return;
    const uint8_t *desc = p + 12 + name_pad;
    if (type == XEN_ELFNOTE_PHYS32_ENTRY && namesz == 4 && memcmp(p + 12, "Xen", 4) == 0 && descsz >= 4) {
      elf->has_pvh = true;
      elf->pvh_entry = get32(desc);
    }
    uint64_t step = 12 + name_pad + desc_pad;
    if (step > len) return;
    p += step;
    len -= step;
  }
}

static int add_segment(struct elf_image *elf, const struct phdr *h, char *err) {
  if (h->memsz == 0) return 0;
  if (h->filesz > h->memsz) return boot_fail(err, "the ELF kernel has a segment that is larger in the file than in memory");
  if (h->paddr + h->memsz < h->paddr)
    return boot_fail(err, "the ELF kernel has a segment that wraps around the end of the address space");
  if (elf->count == BOOT_MAX_SEGMENTS) return boot_fail(err, "the ELF kernel has more than %d segments", BOOT_MAX_SEGMENTS);
  for (unsigned i = 0; i < elf->count; i++)
    if (ranges_overlap(elf->seg[i].gpa, elf->seg[i].memsz, h->paddr, h->memsz))
      return boot_fail(err, "the ELF kernel has segments that overlap at 0x%llx", (unsigned long long)h->paddr);
  elf->seg[elf->count++] = (struct elf_segment){h->paddr, h->memsz, h->offset, h->filesz};
  if (h->paddr < elf->lowest) elf->lowest = h->paddr;
  if (h->paddr + h->memsz > elf->end) elf->end = h->paddr + h->memsz;
  return 0;
}

static bool in_file(const struct elf_image *elf, uint64_t offset, uint64_t len) {
  return offset <= elf->len && len <= elf->len - offset;
}

static bool in_segments(const struct elf_image *elf, uint64_t gpa) {
  for (unsigned i = 0; i < elf->count; i++)
    if (gpa >= elf->seg[i].gpa && gpa - elf->seg[i].gpa < elf->seg[i].memsz) return true;
  return false;
}

/* e_entry is virtual: where a segment maps it, its physical twin; Linux's vmlinux gives the physical one already. */
static uint64_t physical_entry(const struct elf_image *elf, const uint8_t *ph, unsigned phnum, unsigned phentsize,
                               uint64_t entry) {
  if (in_segments(elf, entry)) return entry;
  for (unsigned i = 0; i < phnum; i++) {
    struct phdr h = read_phdr(elf, ph + (size_t)i * phentsize);
    if (h.type == PT_LOAD && entry >= h.vaddr && entry - h.vaddr < h.memsz) return entry - h.vaddr + h.paddr;
  }
  return entry;
}

int elf_parse(struct elf_image *elf, const uint8_t *data, size_t len, char *err) {
  *elf = (struct elf_image){.data = data, .len = len, .lowest = UINT64_MAX};
  if (len < sizeof(Elf32_Ehdr)) return boot_fail(err, "the ELF kernel is truncated: its header is incomplete");
  elf->is64 = data[EI_CLASS] == ELFCLASS64;
  if (data[EI_CLASS] != ELFCLASS32 && data[EI_CLASS] != ELFCLASS64)
    return boot_fail(err, "the ELF kernel is of an unknown class");
  if (elf->is64 && len < sizeof(Elf64_Ehdr)) return boot_fail(err, "the ELF kernel is truncated: its header is incomplete");
  uint16_t machine = get16(data + 18);
  if (data[EI_DATA] != ELFDATA2LSB || (machine != EM_X86_64 && machine != EM_386 && machine != 6 /* EM_486 */))
    return boot_fail(err, "the ELF kernel is not for x86 (machine %u)", machine);
  uint64_t phoff = elf->is64 ? get64(data + 32) : get32(data + 28);
  unsigned phentsize = get16(data + (elf->is64 ? 54 : 42)), phnum = get16(data + (elf->is64 ? 56 : 44));
  if (phnum == 0) return boot_fail(err, "the ELF kernel has no segments to load (an object file?)");
  if (phentsize < (elf->is64 ? sizeof(Elf64_Phdr) : sizeof(Elf32_Phdr)) || !in_file(elf, phoff, (uint64_t)phnum * phentsize))
    return boot_fail(err, "the ELF kernel is truncated: its program headers are incomplete");
  const uint8_t *ph = data + phoff;
  for (unsigned i = 0; i < phnum; i++) {
    struct phdr h = read_phdr(elf, ph + (size_t)i * phentsize);
    if (h.type != PT_LOAD && h.type != PT_NOTE) continue;
    if (!in_file(elf, h.offset, h.filesz))
      return boot_fail(err, "the ELF kernel is truncated: segment %u ends behind the file's end", i);
    if (h.type == PT_NOTE)
      scan_notes(elf, data + h.offset, h.filesz);
    else if (add_segment(elf, &h, err))
      return -1;
  }
  if (elf->count == 0) return boot_fail(err, "the ELF kernel has no segments to load (an object file?)");
  elf->entry = physical_entry(elf, ph, phnum, phentsize, elf->is64 ? get64(data + 24) : get32(data + 24));
  if (!in_segments(elf, elf->entry))
    return boot_fail(err, "the ELF kernel's entry point 0x%llx is in none of its segments", (unsigned long long)elf->entry);
  return 0;
}

int elf_place(const struct elf_image *elf, const struct boot_ram *ram, char *err) {
  for (unsigned i = 0; i < elf->count; i++) {
    const struct elf_segment *s = &elf->seg[i];
    if (boot_copy_in(ram, s->gpa, elf->data + s->offset, s->filesz, s->memsz, "the kernel", err)) return -1;
  }
  return 0;
}

static bool elf_probe(const uint8_t *data, size_t len) {
  return len >= SELFMAG && memcmp(data, ELFMAG, SELFMAG) == 0;
}

static int elf_open(struct boot_image *image, const uint8_t *data, size_t len, char *err) {
  struct elf_image probe;
  if (elf_parse(&probe, data, len, err)) return -1;
  image->data = malloc(len);
  if (!image->data) return boot_fail(err, "out of memory");
  memcpy(image->data, data, len);
  image->len = len;
  image->is_elf = true;
  image->elf = probe;
  image->elf.data = image->data;
  snprintf(image->text, sizeof(image->text), "ELF, %s-bit", probe.is64 ? "64" : "32");
  return 0;
}

/* A 64-bit ELF starts in 64-bit mode with %rsi at a Linux zero page, which a vmlinux needs and others may ignore; a 32-bit
 * one in protected mode with the same in %esi. */
static int elf_load(const struct boot_image *image, const struct boot_request *req, struct boot_entry *entry, char *err) {
  uint64_t initrd;
  if (elf_place(&image->elf, req->ram, err)) return -1;
  if (boot_place_cmdline(req, LAYOUT_CMDLINE_MAX - 1, err)) return -1;
  if (boot_place_initrd(req, image->elf.end, LAYOUT_HOLE_START, &initrd, err)) return -1;
  linux_fill_zero_page(req, NULL, initrd);
  (image->elf.is64 ? boot_enter_long64 : boot_enter_prot32)(req, image->elf.entry, entry);
  entry->rsi = LAYOUT_ZERO_PAGE;
  return 0;
}

static bool pvh_probe(const uint8_t *data, size_t len) {
  struct elf_image elf;
  char err[BOOT_ERR_LEN];
  return elf_probe(data, len) && elf_parse(&elf, data, len, err) == 0 && elf.has_pvh;
}

static int pvh_open(struct boot_image *image, const uint8_t *data, size_t len, char *err) {
  if (elf_open(image, data, len, err)) return -1;
  if (!in_segments(&image->elf, image->elf.pvh_entry))
    return boot_fail(err, "the ELF kernel's PVH entry point 0x%x is in none of its segments", image->elf.pvh_entry);
  snprintf(image->text, sizeof(image->text), "ELF with PVH entry, %s-bit", image->elf.is64 ? "64" : "32");
  return 0;
}

/* The start-of-day structures of PVH (Xen: public/arch-x86/hvm/start_info.h), version 1. */
struct pvh_start_info {
  uint32_t magic, version, flags, nr_modules;
  uint64_t modlist, cmdline, rsdp, memmap;
  uint32_t memmap_entries, reserved;
};
struct pvh_module {
  uint64_t gpa, len, cmdline, reserved;
};
struct pvh_memmap_entry {
  uint64_t gpa, len;
  uint32_t type, reserved;
};
struct pvh_block {
  struct pvh_start_info info;
  struct pvh_module module;
  struct pvh_memmap_entry map[MEMMAP_MAX];
};

static int pvh_load(const struct boot_image *image, const struct boot_request *req, struct boot_entry *entry, char *err) {
  uint64_t initrd;
  if (elf_place(&image->elf, req->ram, err)) return -1;
  if (boot_place_cmdline(req, LAYOUT_CMDLINE_MAX - 1, err)) return -1;
  if (boot_place_initrd(req, image->elf.end, LAYOUT_HOLE_START, &initrd, err)) return -1;
  struct memmap_entry map[MEMMAP_MAX];
  struct pvh_block block = {
      .info = {.magic = 0x336ec578,
               .version = 1,
               .nr_modules = initrd != 0,
               .cmdline = LAYOUT_CMDLINE,
               .rsdp = req->rsdp,
               .modlist = initrd ? LAYOUT_MBI + offsetof(struct pvh_block, module) : 0,
               .memmap = LAYOUT_MBI + offsetof(struct pvh_block, map),
               .memmap_entries = boot_memmap(req, map)},
      .module = {.gpa = initrd, .len = req->initrd_len},
  };
  for (unsigned i = 0; i < block.info.memmap_entries; i++)
    block.map[i] = (struct pvh_memmap_entry){.gpa = map[i].gpa, .len = map[i].len, .type = map[i].type};
  memcpy(boot_ram_at(req->ram, LAYOUT_MBI, sizeof(block)), &block, sizeof(block));
  boot_enter_prot32(req, image->elf.pvh_entry, entry);
  entry->rbx = LAYOUT_MBI;
  return 0;
}

const struct boot_format boot_format_elf = {"ELF", elf_probe, elf_open, elf_load};
const struct boot_format boot_format_pvh = {"PVH", pvh_probe, pvh_open, pvh_load};
