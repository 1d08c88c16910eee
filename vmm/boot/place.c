/* Puts kernels, command lines, initrds and entry tables into guest memory. */
#include <stdio.h>
#include <string.h>

#include "vmm/boot/boot_priv.h"

void *boot_ram_at(const struct boot_ram *ram, uint64_t gpa, uint64_t len) {
  for (int i = 0; i < 2; i++) {
    const struct boot_ram_piece *p = &ram->piece[i];
    if (gpa >= p->gpa && gpa - p->gpa <= p->len && len <= p->len - (gpa - p->gpa))
      return p->len ? p->host + (gpa - p->gpa) : NULL;
  }
  return NULL;
}

bool ranges_overlap(uint64_t a, uint64_t alen, uint64_t b, uint64_t blen) {
  if (alen == 0 || blen == 0) return false;
  return a <= b ? b - a < alen : a - b < blen;
}

static double mib(uint64_t bytes) {
  return (double)bytes / (1 << 20);
}

/* The areas of the first megabyte that a kernel must not be loaded to. */
static const struct {
  uint64_t gpa, end;
  const char *what;
} forbidden[] = {
    {LAYOUT_BOOT_START, LAYOUT_BOOT_END, "the VMM's boot data"},
    {LAYOUT_ACPI, LAYOUT_MPTABLE_END, "the firmware tables"},
};

int boot_copy_in(const struct boot_ram *ram, uint64_t gpa, const void *data, uint64_t filesz, uint64_t memsz, const char *what,
                 char *err) {
  if (memsz < filesz) memsz = filesz;
  for (size_t i = 0; i < sizeof(forbidden) / sizeof(forbidden[0]); i++)
    if (ranges_overlap(gpa, memsz, forbidden[i].gpa, forbidden[i].end - forbidden[i].gpa))
      return boot_fail(err, "%s wants to be loaded at 0x%llx-0x%llx, where %s are", what, (unsigned long long)gpa,
                       (unsigned long long)(gpa + memsz - 1), forbidden[i].what);
  uint8_t *dst = boot_ram_at(ram, gpa, memsz);
  if (!dst)
    return boot_fail(err, "%s needs memory at 0x%llx-0x%llx, which the machine does not have (give it more with --memory)", what,
                     (unsigned long long)gpa, (unsigned long long)(gpa + memsz - 1));
  if (filesz) memcpy(dst, data, filesz);
  memset(dst + filesz, 0, memsz - filesz);
  return 0;
}

int boot_place_cmdline(const struct boot_request *req, uint32_t max, char *err) {
  size_t len = strlen(req->cmdline);
  if (max > LAYOUT_CMDLINE_MAX - 1) max = LAYOUT_CMDLINE_MAX - 1;
  if (len > max) return boot_fail(err, "the command line has %zu characters, this kernel takes %u", len, max);
  memcpy(boot_ram_at(req->ram, LAYOUT_CMDLINE, len + 1), req->cmdline, len + 1);
  return 0;
}

int boot_place_initrd(const struct boot_request *req, uint64_t floor, uint64_t limit, uint64_t *gpa, char *err) {
  *gpa = 0;
  if (!req->initrd || req->initrd_len == 0) return 0;
  if (limit > req->ram->piece[0].len) limit = req->ram->piece[0].len;
  if (floor < LAYOUT_HIGH) floor = LAYOUT_HIGH;
  floor = (floor + 0xfff) & ~0xfffull;
  uint64_t at = limit < req->initrd_len ? 0 : (limit - req->initrd_len) & ~0xfffull;
  if (at < floor)
    return boot_fail(err, "the initrd of %.1f MiB does not fit beside the kernel (%.1f MiB are free; give more with --memory)",
                     mib(req->initrd_len), limit > floor ? mib(limit - floor) : 0.0);
  memcpy(boot_ram_at(req->ram, at, req->initrd_len), req->initrd, req->initrd_len);
  *gpa = at;
  return 0;
}

unsigned boot_memmap(const struct boot_request *req, struct memmap_entry map[MEMMAP_MAX]) {
  const struct boot_ram_piece *low = &req->ram->piece[0], *high = &req->ram->piece[1];
  unsigned n = 0;
  map[n++] = (struct memmap_entry){0, LAYOUT_EBDA, MEMMAP_RAM};
  map[n++] = (struct memmap_entry){LAYOUT_EBDA, LAYOUT_VGA - LAYOUT_EBDA, MEMMAP_RESERVED};
  map[n++] = (struct memmap_entry){LAYOUT_ACPI, LAYOUT_HIGH - LAYOUT_ACPI, MEMMAP_RESERVED};
  if (low->len > LAYOUT_HIGH) map[n++] = (struct memmap_entry){LAYOUT_HIGH, low->len - LAYOUT_HIGH, MEMMAP_RAM};
  for (unsigned i = 0; i < req->hole_count && n < MEMMAP_MAX - 1; i++)
    map[n++] = (struct memmap_entry){req->holes[i].gpa, req->holes[i].len, MEMMAP_RESERVED};
  if (high->len) map[n++] = (struct memmap_entry){high->gpa, high->len, MEMMAP_RAM};
  return n;
}

/* Selectors of the Linux boot protocol: __BOOT_CS 0x10, __BOOT_DS 0x18 (boot.rst, "64-bit boot protocol"), then a TSS. */
enum { GDT_CODE = 2, GDT_DATA = 3, GDT_TSS = 4, GDT_ENTRIES = 6 };

static void fill_gdt(const struct boot_request *req, bool is64, struct boot_entry *entry) {
  const uint64_t gdt[GDT_ENTRIES] = {
      [GDT_CODE] = is64 ? 0x00af9b000000ffff : 0x00cf9b000000ffff, /* present, execute/read, accessed; L or D, 4 GiB */
      [GDT_DATA] = 0x00cf93000000ffff,
      [GDT_TSS] = 0x00008b0000000067, /* busy TSS at 0, limit 0x67 */
  };
  memcpy(boot_ram_at(req->ram, LAYOUT_GDT, sizeof(gdt)), gdt, sizeof(gdt));
  entry->gdt = LAYOUT_GDT;
  entry->gdt_limit = sizeof(gdt) - 1;
  entry->cs = GDT_CODE * 8;
  entry->ds = GDT_DATA * 8;
  entry->tr = GDT_TSS * 8;
  entry->rsp = LAYOUT_STACK_TOP;
}

void boot_enter_prot32(const struct boot_request *req, uint64_t rip, struct boot_entry *entry) {
  fill_gdt(req, false, entry);
  entry->mode = BOOT_PROT32;
  entry->rip = rip;
}

/* Maps the first 4 GiB one to one with 2 MiB pages. */
void boot_enter_long64(const struct boot_request *req, uint64_t rip, struct boot_entry *entry) {
  enum { PRESENT_WRITE = 3, LARGE = 0x80 };
  fill_gdt(req, true, entry);
  uint64_t *table = boot_ram_at(req->ram, LAYOUT_PML4, 6 * 4096);
  memset(table, 0, 6 * 4096);
  table[0] = LAYOUT_PDPT | PRESENT_WRITE;
  for (unsigned i = 0; i < 4; i++) table[512 + i] = (LAYOUT_PD + i * 4096) | PRESENT_WRITE;
  for (uint64_t i = 0; i < 2048; i++) table[1024 + i] = i << 21 | PRESENT_WRITE | LARGE;
  entry->mode = BOOT_LONG64;
  entry->rip = rip;
  entry->cr3 = LAYOUT_PML4;
}
