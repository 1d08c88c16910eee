/* The zero page: what a Linux kernel is told by its loader (Linux: Documentation/arch/x86/zero-page.rst). */
#include <string.h>

#include <asm/bootparam.h>

#include "vmm/boot/boot_priv.h"

/* The setup header of a bzImage ends where the byte at 0x201 (a jump's displacement) says: 0x202 plus that byte. */
static void copy_setup_header(struct boot_params *bp, const uint8_t *setup) {
  size_t end = 0x202 + setup[0x201], start = offsetof(struct boot_params, hdr);
  if (end > start + sizeof(bp->hdr)) end = start + sizeof(bp->hdr);
  memcpy(&bp->hdr, setup + start, end - start);
}

/* A vmlinux has no setup header; these are the fields that its early code looks at. */
static void make_setup_header(struct boot_params *bp) {
  bp->hdr.boot_flag = 0xaa55;
  bp->hdr.header = 0x53726448; /* "HdrS" */
  bp->hdr.version = 0x020f;
  bp->hdr.loadflags = LOADED_HIGH;
  bp->hdr.cmdline_size = LAYOUT_CMDLINE_MAX - 1;
  bp->hdr.kernel_alignment = 0x1000000;
}

void linux_fill_zero_page(const struct boot_request *req, const uint8_t *setup, uint64_t initrd) {
  struct boot_params *bp = boot_ram_at(req->ram, LAYOUT_ZERO_PAGE, sizeof(*bp));
  memset(bp, 0, sizeof(*bp));
  if (setup)
    copy_setup_header(bp, setup);
  else
    make_setup_header(bp);
  bp->hdr.type_of_loader = 0xff; /* "undefined": no assigned id */
  bp->hdr.vid_mode = 0xffff;     /* normal */
  bp->hdr.cmd_line_ptr = LAYOUT_CMDLINE;
  bp->hdr.loadflags &= (uint8_t)~CAN_USE_HEAP;
  if (initrd) {
    bp->hdr.ramdisk_image = (uint32_t)initrd;
    bp->hdr.ramdisk_size = (uint32_t)req->initrd_len;
  }
  bp->acpi_rsdp_addr = req->rsdp;
  struct memmap_entry map[MEMMAP_MAX];
  bp->e820_entries = (uint8_t)boot_memmap(req, map);
  for (unsigned i = 0; i < bp->e820_entries; i++)
    bp->e820_table[i] = (struct boot_e820_entry){.addr = map[i].gpa, .size = map[i].len, .type = map[i].type};
}
