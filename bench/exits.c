/* Round trips through KVM_RUN: a port exit, an MMIO exit; and what stays inside: a hypercall, RDMSR, RDMSR that one range and
 * that the last of all ranges of an MSR filter allows; nanoseconds each.
 *
 * The guest is a few bytes of 64-bit code, or, for the rows that say so, of real-mode code.  Prints "BENCH name ns".
 *
 * usage: exits [NAME...] */
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include "bench.h"

#define TURNS 1000000 /* of a loop in the guest, by ESI */

struct loop {
  const char *name;
  bool real_mode;
  uint8_t code[16];
  uint32_t ecx;
  unsigned filters; /* ranges of an MSR filter; the last one holds ECX */
  uint32_t reason;  /* the exit that ends each turn; KVM_EXIT_HLT: the last one */
};

#define READ_APIC_BASE                                                                                                           \
  { 0x0f, 0x32, 0xff, 0xce, 0x75, 0xfa, 0xf4 } /* rdmsr; dec esi; jnz; hlt */

static const struct loop loops[] = {
    {"pio-exit", false, {0xe6, 0x10, 0xeb, 0xfc}, .reason = KVM_EXIT_IO},          /* out 0x10, al; jmp */
    {"mmio-write-exit", false, {0x89, 0x03, 0xeb, 0xfc}, .reason = KVM_EXIT_MMIO}, /* mov [rbx], eax; jmp */
    {"mmio-read-exit", false, {0x8b, 0x03, 0xeb, 0xfc}, .reason = KVM_EXIT_MMIO},  /* mov eax, [rbx]; jmp */
    {"pio-exit-real-mode", true, {0xe6, 0x10, 0xeb, 0xfc}, .reason = KVM_EXIT_IO},
    {"mmio-write-exit-real-mode", true, {0x67, 0x66, 0x89, 0x03, 0xeb, 0xfa}, .reason = KVM_EXIT_MMIO},
    {"mmio-read-exit-real-mode", true, {0x67, 0x66, 0x8b, 0x03, 0xeb, 0xfa}, .reason = KVM_EXIT_MMIO},
    /* of an unknown number: vmcall; mov eax, 99; dec esi; jnz; hlt */
    {"hypercall", false, {0x0f, 0x01, 0xc1, 0xb8, 0x63, 0, 0, 0, 0xff, 0xce, 0x75, 0xf4, 0xf4}, .reason = KVM_EXIT_HLT},
    {"rdmsr", false, READ_APIC_BASE, .ecx = 0x1b, .reason = KVM_EXIT_HLT},
    {"rdmsr-filter", false, READ_APIC_BASE, .ecx = 0x1b, .filters = 1, .reason = KVM_EXIT_HLT},
    {"rdmsr-filter-full", false, READ_APIC_BASE, .ecx = 0x1b, .filters = KVM_MSR_FILTER_MAX_RANGES, .reason = KVM_EXIT_HLT},
};

static void set_filter(int vm, const struct loop *l) {
  uint8_t all[32];
  struct kvm_msr_filter f = {.flags = KVM_MSR_FILTER_DEFAULT_DENY};
  memset(all, 0xff, sizeof(all));
  for (unsigned n = 0; n < l->filters; n++)
    f.ranges[n] = (struct kvm_msr_filter_range){
        .flags = KVM_MSR_FILTER_READ, .nmsrs = 8 * sizeof(all), .base = (l->filters - 1 - n) << 16, .bitmap = all};
  if (l->filters) call(vm, KVM_X86_SET_MSR_FILTER, &f);
}

static void run_until(int vcpu, const struct kvm_run *run, const struct loop *l, unsigned n) {
  for (unsigned i = 0; i < n; i++) {
    call(vcpu, KVM_RUN, NULL);
    if (run->exit_reason == l->reason) continue;
    fprintf(stderr, "%s: unexpected exit %u\n", l->name, run->exit_reason);
    exit(1);
  }
}

/* The first 2 MiB, as one page. */
static void map_memory(uint8_t *ram) {
  static const uint64_t pml4 = 0x3003, directories = 0x4003, page = 0x83;
  memcpy(ram + 0x2000, &pml4, 8);
  memcpy(ram + 0x3000, &directories, 8);
  memcpy(ram + 0x4000, &page, 8);
}

static void set_segments(int vcpu, bool real_mode) {
  struct kvm_sregs s;
  call(vcpu, KVM_GET_SREGS, &s);
  s.cs.base = s.cs.selector = 0;
  s.ds.base = s.ds.selector = 0;
  s.ds.limit = 0xffffffff; /* reach the MMIO address from real mode */
  if (!real_mode) {
    s.cr3 = 0x2000, s.cr4 = 0x20, s.efer = 0x500, s.cr0 = 0x80000011;
    s.cs.selector = 8, s.cs.l = s.cs.g = 1, s.cs.db = 0, s.cs.limit = 0xffffffff;
  }
  call(vcpu, KVM_SET_SREGS, &s);
}

static double measure(const struct loop *l) {
  int kvm = uvirt_open("/dev/kvm", O_RDWR | O_CLOEXEC);
  if (kvm < 0) {
    perror("/dev/kvm");
    exit(1);
  }
  int vm = call(kvm, KVM_CREATE_VM, 0);
  uint8_t *ram = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  memcpy(ram + 0x1000, l->code, sizeof(l->code));
  map_memory(ram);
  call(vm, KVM_SET_USER_MEMORY_REGION,
       &(struct kvm_userspace_memory_region){.memory_size = 65536, .userspace_addr = (uintptr_t)ram});
  set_filter(vm, l);
  int vcpu = call(vm, KVM_CREATE_VCPU, 0);
  int size = call(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
  struct kvm_run *run = uvirt_mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
  set_segments(vcpu, l->real_mode);
  struct kvm_regs regs = {.rip = 0x1000, .rflags = 2, .rbx = 0x100000, .rcx = l->ecx, .rsi = TURNS, .rax = 99};
  call(vcpu, KVM_SET_REGS, &regs);
  bool exits = l->reason != KVM_EXIT_HLT;
  if (exits) run_until(vcpu, run, l, 1000);
  uint64_t start = now();
  run_until(vcpu, run, l, exits ? TURNS : 1);
  double ns = (double)(now() - start) / TURNS;
  munmap(run, (size_t)size);
  uvirt_close(vcpu), uvirt_close(vm), uvirt_close(kvm);
  munmap(ram, 65536);
  return ns;
}

static bool wanted(char **names, const char *name) {
  if (!*names) return true;
  while (*names && strcmp(*names, name)) names++;
  return *names;
}

int main(int argc, char **argv) {
  for (unsigned n = 0; n < sizeof(loops) / sizeof(loops[0]); n++)
    if (wanted(argv + 1, loops[n].name)) printf("BENCH %s %.1f\n", loops[n].name, measure(&loops[n]));
  return 0;
}
