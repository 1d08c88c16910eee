/* Makes small kernel files of every format, for tests and fuzzers. */
#include <elf.h>
#include <string.h>

#include "tests/vmm/unit/kernels.h"

enum { CODE_AT = 0x200, CODE_LEN = 64 };

static void put(struct kernel_file *k, size_t at, const void *data, size_t len) {
  memcpy(k->data + at, data, len);
  if (at + len > k->len) k->len = at + len;
}

static void put16(struct kernel_file *k, size_t at, uint16_t v) {
  put(k, at, &v, 2);
}
static void put32(struct kernel_file *k, size_t at, uint32_t v) {
  put(k, at, &v, 4);
}
static void put64(struct kernel_file *k, size_t at, uint64_t v) {
  put(k, at, &v, 8);
}

static void put_code(struct kernel_file *k, size_t at) {
  for (unsigned i = 0; i < CODE_LEN; i++) k->data[at + i] = (uint8_t)(0xc0 + i);
  if (k->len < at + CODE_LEN) k->len = at + CODE_LEN;
}

static void make_elf64(struct kernel_file *k, uint64_t gpa, unsigned segments) {
  Elf64_Ehdr eh = {.e_ident = {0x7f, 'E', 'L', 'F', ELFCLASS64, ELFDATA2LSB, EV_CURRENT},
                   .e_type = ET_EXEC,
                   .e_machine = EM_X86_64,
                   .e_version = 1,
                   .e_entry = gpa + 4,
                   .e_phoff = sizeof(eh),
                   .e_ehsize = sizeof(eh),
                   .e_phentsize = sizeof(Elf64_Phdr),
                   .e_phnum = (uint16_t)segments};
  Elf64_Phdr ph = {
      .p_type = PT_LOAD, .p_offset = CODE_AT, .p_vaddr = gpa, .p_paddr = gpa, .p_filesz = CODE_LEN, .p_memsz = 2 * CODE_LEN};
  put(k, 0, &eh, sizeof(eh));
  put(k, sizeof(eh), &ph, sizeof(ph));
  put_code(k, CODE_AT);
}

static void make_elf32(struct kernel_file *k, uint32_t gpa) {
  Elf32_Ehdr eh = {.e_ident = {0x7f, 'E', 'L', 'F', ELFCLASS32, ELFDATA2LSB, EV_CURRENT},
                   .e_type = ET_EXEC,
                   .e_machine = EM_386,
                   .e_version = 1,
                   .e_entry = gpa + 4,
                   .e_phoff = sizeof(eh),
                   .e_ehsize = sizeof(eh),
                   .e_phentsize = sizeof(Elf32_Phdr),
                   .e_phnum = 1};
  Elf32_Phdr ph = {
      .p_type = PT_LOAD, .p_offset = CODE_AT, .p_vaddr = gpa, .p_paddr = gpa, .p_filesz = CODE_LEN, .p_memsz = 2 * CODE_LEN};
  put(k, 0, &eh, sizeof(eh));
  put(k, sizeof(eh), &ph, sizeof(ph));
  put_code(k, CODE_AT);
}

void make_elf(struct kernel_file *k, bool is64, uint64_t gpa) {
  memset(k, 0, sizeof(*k));
  if (is64)
    make_elf64(k, gpa, 1);
  else
    make_elf32(k, (uint32_t)gpa);
}

void make_pvh(struct kernel_file *k, uint64_t gpa, uint32_t entry) {
  enum { NOTE_AT = 0x300 };
  Elf64_Phdr ph = {.p_type = PT_NOTE, .p_offset = NOTE_AT, .p_filesz = 20, .p_memsz = 20};
  memset(k, 0, sizeof(*k));
  make_elf64(k, gpa, 2);
  put(k, sizeof(Elf64_Ehdr) + sizeof(ph), &ph, sizeof(ph));
  put32(k, NOTE_AT, 4);
  put32(k, NOTE_AT + 4, 4);
  put32(k, NOTE_AT + 8, 18);
  put(k, NOTE_AT + 12, "Xen", 4);
  put32(k, NOTE_AT + 16, entry);
}

static void put_multiboot(struct kernel_file *k, size_t at, uint32_t flags) {
  put32(k, at, 0x1badb002);
  put32(k, at + 4, flags);
  put32(k, at + 8, -(0x1badb002u + flags));
}

void make_multiboot_elf(struct kernel_file *k, uint32_t gpa) {
  make_elf(k, false, gpa);
  put_multiboot(k, 0x100, 3);
}

void make_multiboot_raw(struct kernel_file *k, uint32_t gpa) {
  memset(k, 0, sizeof(*k));
  put_multiboot(k, 0x10, 1 << 16);
  const uint32_t addresses[] = {gpa + 0x10, gpa, 0, gpa + 0x1000, gpa + CODE_AT}; /* header, load, load end, bss end, entry */
  put(k, 0x1c, addresses, sizeof(addresses));
  put_code(k, CODE_AT);
}

void make_bzimage(struct kernel_file *k, bool is64, const void *payload, size_t payload_len) {
  enum { SECTS = 1, CODE = (SECTS + 1) * 512, PAYLOAD_AT = 0x400, VERSION_AT = 0x300 };
  memset(k, 0, sizeof(*k));
  k->data[0x1f1] = SECTS;
  put16(k, 0x1fe, 0xaa55);
  k->data[0x201] = 0x6a;
  put(k, 0x202, "HdrS", 4);
  put16(k, 0x206, 0x20f);
  put16(k, 0x20e, VERSION_AT - 0x200);
  put(k, VERSION_AT, "6.66 test", 9);
  k->data[0x211] = 1; /* LOADED_HIGH */
  put32(k, 0x214, 0x100000);
  put32(k, 0x22c, 0x7fffffff);
  k->data[0x234] = 1;
  put16(k, 0x236, is64 ? 1 : 0);
  put32(k, 0x238, 2047);
  put32(k, 0x248, PAYLOAD_AT);
  put32(k, 0x24c, (uint32_t)payload_len);
  put64(k, 0x258, 0x1000000);
  put32(k, 0x260, 0x200000);
  put_code(k, CODE);
  put(k, CODE + PAYLOAD_AT, payload, payload_len);
  while (k->len % 16) k->len++;
  put32(k, 0x1f4, (uint32_t)(k->len - CODE) / 16);
}
