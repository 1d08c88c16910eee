/* Unit tests of the boot loaders: where things land, what the guest is told, what is refused and with which sentence. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <asm/bootparam.h>
#include <cmocka.h>

#include "tests/vmm/unit/kernels.h"
#include "tests/vmm/unit/pack.h"
#include "vmm/boot/boot.h"
#include "vmm/boot/layout.h"

enum { MEMORY = 32 << 20 };

static uint8_t *memory;
static struct boot_ram ram;
static struct kernel_file file;
static char err[BOOT_ERR_LEN];

static int set_up(void **state) {
  memory = calloc(1, MEMORY);
  ram = (struct boot_ram){.piece = {{0, MEMORY, memory}}};
  err[0] = 0;
  return memory ? 0 : -1;
}

static int tear_down(void **state) {
  free(memory);
  return 0;
}

static const struct boot_request plain_request = {.ram = &ram, .cmdline = "a=b", .rsdp = 0xe0000};

/* Opens and loads `file`; returns whether that worked. */
static bool load(const struct boot_request *req, struct boot_entry *entry) {
  struct boot_image *image = boot_image_open(file.data, file.len, err);
  if (!image) return false;
  int r = boot_image_load(image, req, entry, err);
  boot_image_free(image);
  return r == 0;
}

static void assert_refused(const char *part) {
  struct boot_entry entry;
  assert_false(load(&plain_request, &entry));
  if (!strstr(err, part)) fail_msg("'%s' does not say '%s'", err, part);
}

static void assert_code_at(uint64_t gpa) {
  for (unsigned i = 0; i < 64; i++) assert_int_equal(memory[gpa + i], 0xc0 + i);
}

static void elf64_enters_long_mode(void **state) {
  struct boot_entry e;
  memset(memory + 0x100000, 0xee, 0x1000); /* what lies beyond the file's part of a segment is cleared */
  make_elf(&file, true, 0x100000);
  assert_true(load(&plain_request, &e));
  assert_code_at(0x100000);
  assert_int_equal(memory[0x100040], 0);
  assert_int_equal(memory[0x10007f], 0);
  assert_int_equal(memory[0x100080], 0xee);
  assert_int_equal(e.mode, BOOT_LONG64);
  assert_int_equal(e.rip, 0x100004);
  assert_int_equal(e.rsi, LAYOUT_ZERO_PAGE);
}

/* Walks the page tables by hand: every address below 4 GiB is mapped to itself, writable. */
static void long_mode_maps_one_to_one(void **state) {
  struct boot_entry e;
  make_elf(&file, true, 0x100000);
  assert_true(load(&plain_request, &e));
  for (uint64_t va = 0; va < 1ull << 32; va += 1 << 21) {
    uint64_t *pml4 = (uint64_t *)(memory + e.cr3), *pdpt = (uint64_t *)(memory + (pml4[0] & ~0xfffull));
    uint64_t *pd = (uint64_t *)(memory + (pdpt[va >> 30] & ~0xfffull)), pde = pd[va >> 21 & 511];
    assert_int_equal(pde & ~0xfffull, va);
    assert_int_equal(pde & 0x83, 0x83);
  }
}

static void elf32_enters_protected_mode(void **state) {
  struct boot_entry e;
  make_elf(&file, false, 0x100000);
  assert_true(load(&plain_request, &e));
  assert_code_at(0x100000);
  assert_int_equal(e.mode, BOOT_PROT32);
  assert_int_equal(e.rip, 0x100004);
}

static void pvh_gets_start_info(void **state) {
  struct boot_entry e;
  uint32_t info[16];
  uint8_t initrd[100] = "initrd";
  struct boot_request req = plain_request;
  req.initrd = initrd;
  req.initrd_len = sizeof(initrd);
  make_pvh(&file, 0x200000, 0x200010);
  assert_true(load(&req, &e));
  assert_int_equal(e.mode, BOOT_PROT32);
  assert_int_equal(e.rip, 0x200010);
  memcpy(info, memory + e.rbx, sizeof(info));
  assert_int_equal(info[0], 0x336ec578);
  assert_int_equal(info[1], 1); /* version */
  assert_int_equal(info[3], 1); /* modules */
  uint64_t module, rsdp;
  memcpy(&module, memory + info[4], 8);
  memcpy(&rsdp, memory + e.rbx + 32, 8);
  assert_string_equal((char *)memory + module, "initrd");
  assert_string_equal((char *)memory + info[6], "a=b");
  assert_int_equal(rsdp, 0xe0000);
}

static void pvh_entry_must_be_loaded(void **state) {
  make_pvh(&file, 0x200000, 0x300000);
  assert_refused("PVH entry point");
}

static void multiboot_elf(void **state) {
  struct boot_entry e;
  uint32_t info[22];
  make_multiboot_elf(&file, 0x100000);
  assert_true(load(&plain_request, &e));
  assert_code_at(0x100000);
  assert_int_equal(e.mode, BOOT_PROT32);
  assert_int_equal(e.rax, 0x2badb002);
  memcpy(info, memory + e.rbx, sizeof(info));
  assert_int_equal(info[0] & 0x45, 0x45);
  assert_int_equal(info[2], (MEMORY - (1 << 20)) / 1024);
  assert_string_equal((char *)memory + info[4], "a=b");
}

static void multiboot_raw(void **state) {
  struct boot_entry e;
  make_multiboot_raw(&file, 0x100000);
  assert_true(load(&plain_request, &e));
  assert_code_at(0x100200);
  assert_int_equal(e.rip, 0x100200);
}

static void multiboot_unknown_requirement(void **state) {
  make_multiboot_elf(&file, 0x100000);
  uint32_t fields[3] = {0x1badb002, 1 << 5, -(0x1badb002u + (1 << 5))};
  memcpy(file.data + 0x100, fields, sizeof(fields));
  assert_refused("requires features 0x20");
}

static const struct boot_params *zero_page(void) {
  return (const struct boot_params *)(memory + LAYOUT_ZERO_PAGE);
}

static void bzimage_64bit_packed(void **state) {
  struct boot_entry e;
  make_bzimage(&file, true, "????????????????????", 20);
  assert_true(load(&plain_request, &e));
  assert_code_at(0x1000000);
  assert_int_equal(e.mode, BOOT_LONG64);
  assert_int_equal(e.rip, 0x1000200);
  assert_int_equal(e.rsi, LAYOUT_ZERO_PAGE);
  const struct boot_params *bp = zero_page();
  assert_int_equal(bp->hdr.header, 0x53726448);
  assert_int_equal(bp->hdr.type_of_loader, 0xff);
  assert_int_equal(bp->hdr.cmd_line_ptr, LAYOUT_CMDLINE);
  assert_int_equal(bp->acpi_rsdp_addr, 0xe0000);
  assert_string_equal((char *)memory + LAYOUT_CMDLINE, "a=b");
}

static void bzimage_32bit_packed(void **state) {
  struct boot_entry e;
  make_bzimage(&file, false, "????????????????????", 20);
  assert_true(load(&plain_request, &e));
  assert_int_equal(e.mode, BOOT_PROT32);
  assert_int_equal(e.rip, 0x1000000);
}

static void bzimage_payload_of_every_method(void **state) {
  static struct kernel_file inner;
  static uint8_t packed[KERNEL_ROOM];
  for (unsigned i = 0; i < PACKERS; i++) {
    struct boot_entry e;
    make_elf(&inner, true, 0x1000000);
    size_t len = packers[i].pack(inner.data, inner.len, packed, sizeof(packed));
    assert_true(len > 0);
    make_bzimage(&file, true, packed, len);
    memset(memory, 0, MEMORY);
    struct boot_image *image = boot_image_open(file.data, file.len, err);
    assert_non_null(image);
    if (!strstr(boot_image_describe(image), "unpacked by the VMM"))
      fail_msg("%s: %s", packers[i].name, boot_image_describe(image));
    assert_non_null(strstr(boot_image_describe(image), packers[i].name));
    assert_int_equal(boot_image_load(image, &plain_request, &e, err), 0);
    assert_int_equal(e.rip, 0x1000004);
    assert_code_at(0x1000000);
    boot_image_free(image);
  }
}

/* A payload that is damaged is the guest's to complain about. */
static void bzimage_damaged_payload_is_left_to_the_guest(void **state) {
  static struct kernel_file inner;
  static uint8_t packed[KERNEL_ROOM];
  struct boot_entry e;
  make_elf(&inner, true, 0x1000000);
  size_t len = packers[0].pack(inner.data, inner.len, packed, sizeof(packed));
  make_bzimage(&file, true, packed, len / 2);
  assert_true(load(&plain_request, &e));
  assert_int_equal(e.rip, 0x1000200);
}

static void memory_map_covers_all_ram(void **state) {
  static uint8_t high[1 << 20];
  struct boot_entry e;
  const struct boot_hole hole = {0xfed00000, 1 << 20};
  struct boot_request req = plain_request;
  uint64_t ram_bytes = 0;
  bool hole_seen = false;
  ram.piece[1] = (struct boot_ram_piece){1ull << 32, sizeof(high), high};
  req.holes = &hole;
  req.hole_count = 1;
  make_elf(&file, true, 0x100000);
  assert_true(load(&req, &e));
  const struct boot_params *bp = zero_page();
  uint64_t last = 0;
  for (unsigned i = 0; i < bp->e820_entries; i++) {
    struct boot_e820_entry entry = bp->e820_table[i];
    assert_true(entry.addr >= last);
    last = entry.addr + entry.size;
    if (entry.type == 1) ram_bytes += entry.size;
    if (entry.type == 2 && entry.addr == hole.gpa && entry.size == hole.len) hole_seen = true;
  }
  assert_int_equal(ram_bytes, LAYOUT_EBDA + (MEMORY - LAYOUT_HIGH) + sizeof(high));
  assert_true(hole_seen);
}

static void initrd_is_placed_high(void **state) {
  uint8_t initrd[10000];
  struct boot_entry e;
  struct boot_request req = plain_request;
  memset(initrd, 0x5a, sizeof(initrd));
  req.initrd = initrd;
  req.initrd_len = sizeof(initrd);
  make_bzimage(&file, true, "????????????????????", 20);
  assert_true(load(&req, &e));
  const struct boot_params *bp = zero_page();
  assert_int_equal(bp->hdr.ramdisk_size, sizeof(initrd));
  assert_int_equal(bp->hdr.ramdisk_image % 4096, 0);
  assert_true(bp->hdr.ramdisk_image + sizeof(initrd) <= MEMORY);
  assert_true(bp->hdr.ramdisk_image >= 0x1000000 + 0x200000);
  assert_memory_equal(memory + bp->hdr.ramdisk_image, initrd, sizeof(initrd));
}

static void initrd_that_does_not_fit(void **state) {
  struct boot_entry e;
  struct boot_request req = plain_request;
  req.initrd = calloc(1, 20 << 20);
  req.initrd_len = 20 << 20;
  make_bzimage(&file, true, "????????????????????", 20);
  assert_false(load(&req, &e));
  assert_non_null(strstr(err, "initrd of 20.0 MiB does not fit"));
  free((void *)(uintptr_t)req.initrd);
}

static void command_line_too_long(void **state) {
  static char line[4000];
  struct boot_entry e;
  struct boot_request req = plain_request;
  memset(line, 'x', sizeof(line) - 1);
  req.cmdline = line;
  make_bzimage(&file, true, "????????????????????", 20);
  assert_false(load(&req, &e));
  assert_non_null(strstr(err, "command line has 3999 characters"));
}

static void kernel_beyond_memory(void **state) {
  make_elf(&file, true, MEMORY - 64);
  assert_refused("does not have");
}

static void kernel_on_boot_data(void **state) {
  make_elf(&file, true, LAYOUT_ZERO_PAGE);
  assert_refused("boot data");
  make_elf(&file, true, LAYOUT_ACPI);
  assert_refused("firmware tables");
}

/* Every prefix of every format is refused with a reason or loads: never anything else. */
static void truncated_kernels(void **state) {
  for (int format = 0; format < 4; format++) {
    static struct kernel_file whole;
    if (format == 0) make_elf(&whole, true, 0x100000);
    if (format == 1) make_pvh(&whole, 0x100000, 0x100000);
    if (format == 2) make_multiboot_elf(&whole, 0x100000);
    if (format == 3) make_bzimage(&whole, true, "????????????????????", 20);
    for (size_t len = 0; len < whole.len; len += 7) {
      struct boot_entry e;
      file = whole;
      file.len = len;
      err[0] = 0;
      if (!load(&plain_request, &e)) assert_true(err[0]);
    }
  }
}

static void named_refusals(void **state) {
  file.len = 0;
  assert_refused("empty");
  memset(file.data, 'z', 5000);
  file.len = 5000;
  assert_refused("none of bzImage");
  make_bzimage(&file, true, "????????????????????", 20);
  file.len -= 100;
  assert_refused("truncated");
  make_bzimage(&file, true, "????????????????????", 20);
  file.data[0x211] = 0;
  assert_refused("zImage");
  make_elf(&file, true, 0x100000);
  file.data[18] = 183; /* EM_AARCH64 */
  assert_refused("not for x86");
}

static void overlapping_segments(void **state) {
  make_elf(&file, true, 0x100000);
  file.data[56] = 2; /* e_phnum */
  memcpy(file.data + 64 + 56, file.data + 64, 56);
  assert_refused("overlap");
}

int main(void) {
#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
  const struct CMUnitTest tests[] = {
      TEST(elf64_enters_long_mode),
      TEST(long_mode_maps_one_to_one),
      TEST(elf32_enters_protected_mode),
      TEST(pvh_gets_start_info),
      TEST(pvh_entry_must_be_loaded),
      TEST(multiboot_elf),
      TEST(multiboot_raw),
      TEST(multiboot_unknown_requirement),
      TEST(bzimage_64bit_packed),
      TEST(bzimage_32bit_packed),
      TEST(bzimage_payload_of_every_method),
      TEST(bzimage_damaged_payload_is_left_to_the_guest),
      TEST(memory_map_covers_all_ram),
      TEST(initrd_is_placed_high),
      TEST(initrd_that_does_not_fit),
      TEST(command_line_too_long),
      TEST(kernel_beyond_memory),
      TEST(kernel_on_boot_data),
      TEST(truncated_kernels),
      TEST(named_refusals),
      TEST(overlapping_segments),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
