/* Makes small kernel files of every format, for tests and fuzzers. */
#ifndef TESTS_VMM_UNIT_KERNELS_H
#define TESTS_VMM_UNIT_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { KERNEL_ROOM = 65536 };

/* A file being made; `data` is zero beyond `len`. */
struct kernel_file {
  uint8_t data[KERNEL_ROOM];
  size_t len;
};

/* An ELF with one segment of 64 bytes (0xc0, 0xc1, ...) and as many of zero, at gpa; entry is gpa + 4. */
void make_elf(struct kernel_file *k, bool is64, uint64_t gpa);
/* The same with a PVH note that names entry. */
void make_pvh(struct kernel_file *k, uint64_t gpa, uint32_t entry);
/* The same as ELF32 with a multiboot header. */
void make_multiboot_elf(struct kernel_file *k, uint32_t gpa);
/* Multiboot with addresses in its header, loaded to gpa. */
void make_multiboot_raw(struct kernel_file *k, uint32_t gpa);
/* A bzImage of protocol 2.15 whose protected-mode code holds `payload`. */
void make_bzimage(struct kernel_file *k, bool is64, const void *payload, size_t payload_len);

#endif
