/* Mode switches: real, 16-bit and 32-bit protected, PAE paging, compatibility and 64-bit mode, and the way back. */
#include "harness.h"

#define PAE_TABLES 0x200000

GUEST_BLOB(modes,
           ".code16\n"
           "cli\n"
           "xor %ax, %ax\n"
           "mov %ax, %ds\n"
           "mov %ax, %ss\n"
           "lgdtl 0x7e00\n" REPORT(
               1) "mov %cr0, %eax\n"
                  "or $1, %al\n"
                  "mov %eax, %cr0\n"
                  "ljmp $0x20, $" AT(modes,
                                     16f) "\n"
                                          "16: mov $0x28, %ax\n"
                                          "mov %ax, %ds\n"
                                          "mov %ax, %es\n"
                                          "mov %ax, %ss\n" REPORT(2) "ljmpl $0x18, $" AT(
                                              modes,
                                              32f) "\n"
                                                   ".code32\n"
                                                   "32: mov $0x10, %eax\n"
                                                   "mov %eax, %ds\n"
                                                   "mov %eax, %es\n"
                                                   "mov %eax, %ss\n"
                                                   "mov $0x30000, %esp\n" REPORT(
                                                       3) "mov %cr4, %eax\n"
                                                          "or $0x20, %eax\n"
                                                          "mov %eax, %cr4\n"
                                                          "mov $0x200000, %eax\n"
                                                          "mov %eax, %cr3\n"
                                                          "mov %cr0, %eax\n"
                                                          "or $0x80000000, %eax\n"
                                                          "mov %eax, %cr0\n"
                                                          "mov 0x40060000, %ebx\n" /* mapped to 0x60000 by the second PDPTE */
           REPORT(4) "mov %cr0, %eax\n"
                     "and $0x7fffffff, %eax\n"
                     "mov %eax, %cr0\n"
                     "mov $0xc0000080, %ecx\n"
                     "rdmsr\n"
                     "or $0x100, %eax\n"
                     "wrmsr\n"
                     "mov $0x80000, %eax\n"
                     "mov %eax, %cr3\n"
                     "mov %cr0, %eax\n"
                     "or $0x80000000, %eax\n"
                     "mov %eax, %cr0\n" REPORT(5) "ljmp $0x08, $" AT(
                         modes,
                         64f) "\n"
                              ".code64\n"
                              "64: mov $0x123456789abcdef0, %r10\n" REPORT(
                                  6) "push $0x18\n"
                                     "push $" AT(modes,
                                                 65f) "\n"
                                                      "lretq\n"
                                                      ".code32\n"
                                                      "65: " REPORT(7) "mov %cr0, %eax\n"
                                                                       "and $0x7fffffff, %eax\n"
                                                                       "mov %eax, %cr0\n"
                                                                       "mov $0xc0000080, %ecx\n"
                                                                       "rdmsr\n"
                                                                       "and $0xfffffeff, %eax\n"
                                                                       "wrmsr\n" REPORT(8) "ljmp $0x20, $" AT(
                                                                           modes,
                                                                           66f) "\n"
                                                                                ".code16\n"
                                                                                "66: mov $0x28, %ax\n"
                                                                                "mov %ax, %ds\n"
                                                                                "mov %ax, %es\n"
                                                                                "mov %ax, %ss\n"
                                                                                "mov %cr0, %eax\n"
                                                                                "and $0xfe, %al\n"
                                                                                "mov %eax, %cr0\n"
                                                                                "ljmp $0x700, $" AT(modes,
                                                                                                    67f) " - 0x7000\n"
                                                                                                         "67: xor %ax, %ax\n"
                                                                                                         "mov %ax, %ss\n"
                                                                                                         "mov $0x7000, %sp\n"
                                                                                                         "mov $0x1234, %ax\n"
                                                                                                         "mov %ax, %ds\n" REPORT(
                                                                                                             9) "hlt\n");

static void start(struct guest *g) {
  guest_load_blob(g, modes);
  guest_tables(g, true);
  guest_paging(g);
  guest_write(g, 0x7e00, 2, GDT_ENTRIES * 8 - 1);
  guest_write(g, 0x7e02, 4, GUEST_GDT);
  guest_write(g, PAE_TABLES, 8, (PAE_TABLES + 0x1000) | 1);
  guest_write(g, PAE_TABLES + 8, 8, (PAE_TABLES + 0x1000) | 1);
  guest_write(g, PAE_TABLES + 0x1000, 8, 0x83);
  guest_write(g, PAE_TABLES + 0x1008, 8, 0x200083);
  guest_write(g, GUEST_DATA, 4, 0xfeedbeef);
  guest_real(g, 0, GUEST_CODE);
}

static void up(struct guest *g) {
  struct kvm_sregs s;
  CHECK_EQ(guest_next(g), 1);
  s = guest_sregs(g);
  CHECK_EQ(s.cr0 & 1, 0);
  CHECK_EQ(s.gdt.base, GUEST_GDT);
  CHECK_EQ(guest_next(g), 2);
  s = guest_sregs(g);
  CHECK_EQ(s.cr0 & 1, 1);
  CHECK_EQ(s.cs.selector, SEL_CODE16);
  CHECK_EQ(s.cs.db, 0);
  CHECK_EQ(s.ss.selector, SEL_DATA16);
  CHECK_EQ(guest_next(g), 3);
  s = guest_sregs(g);
  CHECK_EQ(s.cs.selector, SEL_CODE32);
  CHECK_EQ(s.cs.db, 1);
  CHECK_EQ(s.cs.limit, 0xffffffff);
  CHECK_EQ(s.ds.limit, 0xffffffff);
  CHECK_EQ(guest_next(g), 4);
  CHECK_EQ(guest_sregs(g).cr0 >> 31, 1);
  CHECK_EQ(guest_regs(g).rbx, 0xfeedbeef);
  CHECK_EQ(guest_next(g), 5);
  s = guest_sregs(g);
  CHECK_EQ(s.efer & 0x500, 0x500);
  CHECK_EQ(s.cs.l, 0);
  CHECK_EQ(guest_next(g), 6);
  s = guest_sregs(g);
  CHECK_EQ(s.cs.l, 1);
  CHECK_EQ(s.cs.selector, SEL_CODE64);
  CHECK_EQ(guest_regs(g).r10, 0x123456789abcdef0);
}

static void down(struct guest *g) {
  struct kvm_sregs s;
  CHECK_EQ(guest_next(g), 7);
  s = guest_sregs(g);
  CHECK_EQ(s.cs.l, 0);
  CHECK_EQ(s.cs.selector, SEL_CODE32);
  CHECK_EQ(guest_next(g), 8);
  CHECK_EQ(guest_sregs(g).efer & 0x500, 0);
  CHECK_EQ(guest_next(g), 9);
  s = guest_sregs(g);
  CHECK_EQ(s.cr0 & 1, 0);
  CHECK_EQ(s.cs.selector, 0x700);
  CHECK_EQ(s.cs.base, 0x7000);
  CHECK_EQ(s.ds.selector, 0x1234);
  CHECK_EQ(s.ds.base, 0x12340);
  CHECK_EQ(s.ds.limit, 0xffff);
  CHECK_EQ(guest_next(g), EXIT(KVM_EXIT_HLT));
}

static void round_trip(void) {
  struct guest *g = guest_new();
  start(g);
  up(g);
  down(g);
  guest_free(g);
}

/* SDM Vol. 3A table 9-1, as KVM_CREATE_VCPU leaves it; and the first instruction at FFFFFFF0. */
static void power_on(void) {
  static u8 rom[0x1000] __attribute__((aligned(4096)));
  struct guest *g = guest_new();
  struct kvm_sregs s = guest_sregs(g);
  struct kvm_regs r = guest_regs(g);
  CHECK_EQ(r.rip, 0xfff0);
  CHECK_EQ(r.rflags, 2);
  CHECK_EQ(s.cs.selector, 0xf000);
  CHECK_EQ(s.cs.base, 0xffff0000);
  CHECK_EQ(s.cs.limit, 0xffff);
  CHECK_EQ(s.ds.limit, 0xffff);
  CHECK_EQ(s.cr0, 0x60000010);
  CHECK_EQ(s.idt.limit, 0xffff);
  CHECK_EQ(s.cr4, 0);
  CHECK_EQ(s.efer, 0);
  rom[0xff0] = 0xe6; /* out %al, $GUEST_PORT */
  rom[0xff1] = GUEST_PORT;
  r.rax = 0x42;
  guest_set_regs(g, &r);
  guest_add_slot(g, 0, 0xfffff000, rom, sizeof(rom));
  CHECK_EQ(guest_next(g), 0x42);
  CHECK_EQ(guest_regs(g).rip, 0xfff2);
  guest_free(g);
}

/* A data segment keeps its protected-mode limit in real mode. */
GUEST_BLOB(unreal, ".code16\n"
                   "cli\n"
                   "xor %ax, %ax\n"
                   "mov %ax, %ds\n"
                   "lgdtl 0x7e00\n"
                   "mov %cr0, %eax\n"
                   "or $1, %al\n"
                   "mov %eax, %cr0\n"
                   "mov $0x10, %bx\n"
                   "mov %bx, %ds\n"
                   "and $0xfe, %al\n"
                   "mov %eax, %cr0\n"
                   "xor %bx, %bx\n"
                   "mov %bx, %ds\n"
                   "mov $0x123456, %esi\n"
                   "addr32 mov (%esi), %ebx\n" REPORT(1) "hlt\n");

static void unreal_mode(void) {
  struct guest *g = guest_new();
  guest_tables(g, false);
  guest_load_blob(g, unreal);
  guest_write(g, 0x7e00, 2, GDT_ENTRIES * 8 - 1);
  guest_write(g, 0x7e02, 4, GUEST_GDT);
  guest_write(g, 0x123456, 4, 0xcafe1234);
  guest_real(g, 0, GUEST_CODE);
  CHECK_EQ(guest_next(g), 1);
  CHECK_EQ(guest_regs(g).rbx, 0xcafe1234);
  CHECK_EQ(guest_sregs(g).ds.limit, 0xffffffff);
  guest_free(g);
}

/* Guest code as a C function of this file. */
static volatile u64 shared;
static void guest_function(void) {
  for (unsigned n = 1; n <= 10; n++) shared += n;
  __asm__ volatile("mov $7, %%al; out %%al, $0xe9; hlt" ::: "rax");
}

static void c_function(void) {
  struct guest *g = guest_new();
  guest_long(g, (u64)(uintptr_t)guest_function);
  guest_map_image(g);
  CHECK_EQ(guest_next(g), 7);
  CHECK_EQ(shared, 55);
  guest_free(g);
}

GUEST_MAIN({"round-trip", round_trip}, {"power-on", power_on}, {"unreal-mode", unreal_mode}, {"c-function", c_function})
