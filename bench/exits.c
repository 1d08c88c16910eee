/* Round trips through KVM_RUN: a port exit, an MMIO exit, and a hypercall that stays inside; nanoseconds each.
 *
 * The guest is a few bytes of real-mode code.  Prints "BENCH name ns". */
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include "bench.h"

/* Runs `code` until n exits of kind `reason` came (n iterations of a loop ending in one). */
static double measure(const uint8_t *code, size_t len, unsigned reason, unsigned n) {
  int kvm = uvirt_open("/dev/kvm", O_RDWR | O_CLOEXEC);
  if (kvm < 0) {
    perror("/dev/kvm");
    exit(1);
  }
  int vm = call(kvm, KVM_CREATE_VM, 0);
  uint8_t *ram = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  memcpy(ram + 0x1000, code, len);
  call(vm, KVM_SET_USER_MEMORY_REGION, &(struct kvm_userspace_memory_region){.memory_size = 65536, .userspace_addr = (uintptr_t)ram});
  int vcpu = call(vm, KVM_CREATE_VCPU, 0);
  int size = call(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
  struct kvm_run *run = uvirt_mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
  struct kvm_sregs sregs;
  call(vcpu, KVM_GET_SREGS, &sregs);
  sregs.cs.base = sregs.cs.selector = 0;
  sregs.ds.base = sregs.ds.selector = 0;
  sregs.ds.limit = 0xffffffff; /* reach the MMIO address from real mode */
  call(vcpu, KVM_SET_SREGS, &sregs);
  struct kvm_regs regs = {.rip = 0x1000, .rflags = 2, .rbx = 0x100000, .rcx = 1000000, .rax = 99};
  call(vcpu, KVM_SET_REGS, &regs);
  for (unsigned i = 0; i < 1000 && reason != KVM_EXIT_HLT; i++) call(vcpu, KVM_RUN, NULL);
  uint64_t start = now();
  for (unsigned i = 0; i < n; i++) {
    call(vcpu, KVM_RUN, NULL);
    if (run->exit_reason != reason) {
      fprintf(stderr, "unexpected exit %u\n", run->exit_reason);
      exit(1);
    }
  }
  double ns = (double)(now() - start) / n;
  munmap(run, (size_t)size);
  uvirt_close(vcpu), uvirt_close(vm), uvirt_close(kvm);
  munmap(ram, 65536);
  return ns;
}

int main(void) {
  static const uint8_t pio[] = {0xe6, 0x10, 0xeb, 0xfc};                    /* out 0x10, al; jmp */
  static const uint8_t mmio[] = {0x67, 0x66, 0x89, 0x03, 0xeb, 0xfa};       /* mov [ebx], eax; jmp */
  static const uint8_t mmio_read[] = {0x67, 0x66, 0x8b, 0x03, 0xeb, 0xfa};  /* mov eax, [ebx]; jmp */
  /* 1 million VMCALLs with an unknown number, then HLT: vmcall; mov ax,99; dec ecx; jnz; hlt */
  static const uint8_t hypercall[] = {0x0f, 0x01, 0xc1, 0xb8, 0x63, 0, 0x66, 0x49, 0x75, 0xf6, 0xf4};
  printf("BENCH pio-exit %.1f\n", measure(pio, sizeof(pio), KVM_EXIT_IO, 1000000));
  printf("BENCH mmio-write-exit %.1f\n", measure(mmio, sizeof(mmio), KVM_EXIT_MMIO, 1000000));
  printf("BENCH mmio-read-exit %.1f\n", measure(mmio_read, sizeof(mmio_read), KVM_EXIT_MMIO, 1000000));
  printf("BENCH hypercall %.1f\n", measure(hypercall, sizeof(hypercall), KVM_EXIT_HLT, 1) / 1000000);
  return 0;
}
