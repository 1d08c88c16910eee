/* A small VM over the public API, for tests of system instructions and state ioctls. */
#ifndef TESTS_UNIT_SYS_GUEST_H
#define TESTS_UNIT_SYS_GUEST_H

#include <linux/kvm.h>
#include <stdbool.h>
#include <stdint.h>
#include "uvirt.h"

#define GUEST_MEMORY (2u << 20)
#define GUEST_CODE   0x8000u
#define GUEST_STACK  0x7000u
#define MAX_CPUS     72

struct guest {
  int sys, vm, cpu[MAX_CPUS];
  unsigned cpus;
  struct kvm_run *run[MAX_CPUS];
  uint8_t *memory;
};

/* Opens everything; vCPUs have the supported CPUID where cpuid says so. */
void guest_open(struct guest *g, unsigned cpus, bool cpuid);
void guest_open_irqchip(struct guest *g, unsigned cpus); /* with interrupt controllers in the library */
void guest_close(struct guest *g);

/* The result of uvirt_ioctl, or -errno. */
int guest_ioctl(int fd, unsigned long request, void *arg);

/* Puts code at GUEST_CODE and vCPU 0 there, in real mode or in 64-bit mode (identity mapped, CPL 0). */
void guest_code16(struct guest *g, const void *begin, const void *end);
void guest_code64(struct guest *g, unsigned cpu, const void *begin, const void *end);
/* Puts vCPU 0 at code in 32-bit PAE paging: identity for the first 2 MiB, and at 1 GiB the page PAE_PAGE_A, until PDPTE 1 is made
 * PAE_PDPTE_B. */
#define PAE_PDPT    0x5000u
#define PAE_PDPTE_B 0x6f001u
#define PAE_PAGE_A  0x20000u
#define PAE_PAGE_B  0x21000u
void guest_code32_pae(struct guest *g, const void *begin, const void *end);
/* Exceptions of vCPU 0 end in HLT with the vector in BL, bit 7 set; the faulting RIP and error code are on the stack. */
void guest_catch_exceptions(struct guest *g, bool mode64);
/* Runs vCPU 0 to HLT: the vector it ended with, or -1 when it came to an end of its own. */
int guest_run_vector(struct guest *g);
/* KVM_RUN; the exit reason, or -errno. */
int guest_run(struct guest *g, unsigned cpu);

uint64_t guest_get_msr(struct guest *g, unsigned cpu, uint32_t index);
bool guest_set_msr(struct guest *g, unsigned cpu, uint32_t index, uint64_t value);
struct kvm_regs guest_regs(struct guest *g, unsigned cpu);

#define ROOM 256
struct cpuid_table {
  struct kvm_cpuid2 head;
  struct kvm_cpuid_entry2 entries[ROOM];
};
void guest_supported(struct guest *g, struct cpuid_table *t);
struct kvm_cpuid_entry2 *cpuid_entry(struct cpuid_table *t, uint32_t function, uint32_t index);

/* Guest code in a test: CODE16(name, "instructions") defines name_begin and name_end. */
#define GUEST_CODE_OF(name, bits, text)                                                                                          \
  extern const char name##_begin[], name##_end[];                                                                                \
  __asm__(".pushsection .rodata\n.code" bits "\n" #name "_begin:\n" text "\n" #name "_end:\n.code64\n.popsection\n")
#define CODE16(name, text) GUEST_CODE_OF(name, "16", text)
#define CODE32(name, text) GUEST_CODE_OF(name, "32", text)
#define CODE64(name, text) GUEST_CODE_OF(name, "64", text)

#endif
