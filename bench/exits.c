/* Round trips through KVM_RUN: a port exit, an MMIO exit; and what stays inside: a hypercall, RDMSR, RDMSR that one range and
 * that the last of all ranges of an MSR filter allows; nanoseconds each.
 *
 * The guest is a few bytes of real-mode code.  Prints "BENCH name ns". */
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
  uint8_t code[16];
  uint32_t ecx;
  unsigned filters; /* ranges of an MSR filter; the last one holds ECX */
  uint32_t reason;  /* the exit that ends each turn; KVM_EXIT_HLT: the last one */
};

#define READ_APIC_BASE                                                                                                           \
  { 0x0f, 0x32, 0x66, 0x4e, 0x75, 0xfa, 0xf4 } /* rdmsr; dec esi; jnz; hlt */

static const struct loop loops[] = {
    {"pio-exit", {0xe6, 0x10, 0xeb, 0xfc}, .reason = KVM_EXIT_IO},                      /* out 0x10, al; jmp */
    {"mmio-write-exit", {0x67, 0x66, 0x89, 0x03, 0xeb, 0xfa}, .reason = KVM_EXIT_MMIO}, /* mov [ebx], eax; jmp */
    {"mmio-read-exit", {0x67, 0x66, 0x8b, 0x03, 0xeb, 0xfa}, .reason = KVM_EXIT_MMIO},  /* mov eax, [ebx]; jmp */
    /* of an unknown number: vmcall; mov ax, 99; dec esi; jnz; hlt */
    {"hypercall", {0x0f, 0x01, 0xc1, 0xb8, 0x63, 0, 0x66, 0x4e, 0x75, 0xf6, 0xf4}, .reason = KVM_EXIT_HLT},
    {"rdmsr", READ_APIC_BASE, .ecx = 0x1b, .reason = KVM_EXIT_HLT},
    {"rdmsr-filter", READ_APIC_BASE, .ecx = 0x1b, .filters = 1, .reason = KVM_EXIT_HLT},
    {"rdmsr-filter-full", READ_APIC_BASE, .ecx = 0x1b, .filters = KVM_MSR_FILTER_MAX_RANGES, .reason = KVM_EXIT_HLT},
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

static double measure(const struct loop *l) {
  int kvm = uvirt_open("/dev/kvm", O_RDWR | O_CLOEXEC);
  if (kvm < 0) {
    perror("/dev/kvm");
    exit(1);
  }
  int vm = call(kvm, KVM_CREATE_VM, 0);
  uint8_t *ram = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  memcpy(ram + 0x1000, l->code, sizeof(l->code));
  call(vm, KVM_SET_USER_MEMORY_REGION,
       &(struct kvm_userspace_memory_region){.memory_size = 65536, .userspace_addr = (uintptr_t)ram});
  set_filter(vm, l);
  int vcpu = call(vm, KVM_CREATE_VCPU, 0);
  int size = call(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
  struct kvm_run *run = uvirt_mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
  struct kvm_sregs sregs;
  call(vcpu, KVM_GET_SREGS, &sregs);
  sregs.cs.base = sregs.cs.selector = 0;
  sregs.ds.base = sregs.ds.selector = 0;
  sregs.ds.limit = 0xffffffff; /* reach the MMIO address from real mode */
  call(vcpu, KVM_SET_SREGS, &sregs);
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

int main(void) {
  for (unsigned n = 0; n < sizeof(loops) / sizeof(loops[0]); n++) printf("BENCH %s %.1f\n", loops[n].name, measure(&loops[n]));
  return 0;
}
