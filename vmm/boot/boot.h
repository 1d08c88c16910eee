/* Boot loaders: a kernel file in, guest memory and the first vCPU's entry state out.
 *
 * Loaders are pure: they read bytes, write guest memory through struct boot_ram and know neither KVM nor the machine,
 * so that tests and fuzzers run them alone.  Everything in a kernel file is untrusted. */
#ifndef VMM_BOOT_BOOT_H
#define VMM_BOOT_BOOT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define BOOT_ERR_LEN 256

/* Guest memory: piece 0 starts at address 0; piece 1, where len is not 0, above the 32-bit hole. */
struct boot_ram {
  struct boot_ram_piece {
    uint64_t gpa, len;
    uint8_t *host;
  } piece[2];
};

/* Host address of [gpa, gpa+len), NULL unless the whole range is RAM in one piece. */
void *boot_ram_at(const struct boot_ram *ram, uint64_t gpa, uint64_t len);

struct boot_image;

/* Recognises and checks a kernel, unpacks its payload.  Takes a copy of what it needs.  NULL and a sentence in err.
 * A bzImage whose payload cannot be unpacked here is not an error: the guest unpacks it itself. */
struct boot_image *boot_image_open(const void *file, size_t len, char err[BOOT_ERR_LEN]);
void boot_image_free(struct boot_image *image);
/* One phrase that describes the kernel ("Linux bzImage 6.1.0 (64-bit, lz4 payload unpacked)"). */
const char *boot_image_describe(const struct boot_image *image);

/* An address range that is not RAM but that the guest shall leave alone (ECAM). */
struct boot_hole {
  uint64_t gpa, len;
};

struct boot_request {
  const struct boot_ram *ram;
  const char *cmdline;
  const void *initrd; /* NULL: none */
  size_t initrd_len;
  uint64_t rsdp; /* address of the ACPI root pointer, 0: no ACPI */
  const struct boot_hole *holes;
  unsigned hole_count;
};

enum boot_mode {
  BOOT_PROT32, /* protected mode, flat 4 GiB segments, paging off */
  BOOT_LONG64, /* 64-bit mode, the first 4 GiB mapped one to one */
};

/* State of the first vCPU at entry; segments and control registers follow from mode. */
struct boot_entry {
  enum boot_mode mode;
  uint64_t rip, rsp, rax, rbx, rsi;
  uint64_t cr3; /* BOOT_LONG64 */
  uint64_t gdt; /* address and length of the descriptor table in guest memory */
  uint16_t gdt_limit;
  uint16_t cs, ds, tr;
};

/* Places the kernel, its parameters and the initrd.  0, or -1 and a sentence in err. */
int boot_image_load(const struct boot_image *image, const struct boot_request *req, struct boot_entry *entry,
                    char err[BOOT_ERR_LEN]);

#endif
