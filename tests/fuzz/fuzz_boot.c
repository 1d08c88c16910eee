/* Fuzz target: the boot loaders, from the kernel file to guest memory. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "tests/vmm/unit/kernels.h"
#include "vmm/boot/boot.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
const uint8_t *fuzz_seed_input(unsigned i, size_t *size);

enum { MEMORY = 24 << 20 };

/* Memory is not cleared between inputs: loaders must not depend on it. */
static uint8_t *memory(void) {
  static uint8_t *p;
  if (!p) p = malloc(MEMORY);
  return p;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static const uint8_t initrd[5000];
  char err[BOOT_ERR_LEN] = "";
  struct boot_entry entry;
  const struct boot_ram ram = {.piece = {{0, MEMORY, memory()}}};
  const struct boot_request req = {
      .ram = &ram, .cmdline = "console=ttyS0", .initrd = initrd, .initrd_len = sizeof(initrd), .rsdp = 0xe0000};
  if (!ram.piece[0].host) return 0;
  struct boot_image *image = boot_image_open(data, size, err);
  if (!image) {
    if (!*err) abort(); /* a refusal has a reason */
    return 0;
  }
  if (boot_image_load(image, &req, &entry, err) == 0) {
    if (!boot_ram_at(&ram, entry.rip, 1)) abort(); /* the entry point is in memory */
  } else if (!*err) {
    abort();
  }
  boot_image_free(image);
  return 0;
}

const uint8_t *fuzz_seed_input(unsigned i, size_t *size) {
  static struct kernel_file k, inner;
  switch (i) {
  case 0:
    make_elf(&k, true, 0x100000);
    break;
  case 1:
    make_elf(&k, false, 0x100000);
    break;
  case 2:
    make_pvh(&k, 0x200000, 0x200004);
    break;
  case 3:
    make_multiboot_elf(&k, 0x100000);
    break;
  case 4:
    make_multiboot_raw(&k, 0x100000);
    break;
  case 5:
    make_bzimage(&k, true, "no known method of packing", 26);
    break;
  case 6:
    make_elf(&inner, true, 0x1000000);
    make_bzimage(&k, true, inner.data, inner.len);
    break;
  default:
    return NULL;
  }
  *size = k.len;
  return k.data;
}
