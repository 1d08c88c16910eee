/* Compares two machines. */
#include <Zydis/Zydis.h>
#include <stdio.h>
#include <string.h>
#include "lockstep.h"
#include "x86/x86.h"

bool same_registers(struct machine *a, struct machine *b) {
  const struct x86_vcpu *x = machine_vcpu(a), *y = machine_vcpu(b);
  return x->regs[X86_REG_RIP] == y->regs[X86_REG_RIP] && !memcmp(x->regs, y->regs, 16 * sizeof(x->regs[0]));
}

static bool same_extended(struct x86_vcpu *x, struct x86_vcpu *y) {
  x86_mxcsr_sync(x);
  x86_mxcsr_sync(y);
  return !memcmp(x->fpu.zmm, y->fpu.zmm, sizeof(x->fpu.zmm)) && !memcmp(x->fpu.k, y->fpu.k, sizeof(x->fpu.k)) &&
         !memcmp(x->fpu.fx, y->fpu.fx, 160) && x->fpu.mxcsr == y->fpu.mxcsr;
}

static bool same_segment(const struct x86_seg *a, const struct x86_seg *b) {
  return a->base == b->base && a->limit == b->limit && a->sel == b->sel && a->type == b->type && a->dpl == b->dpl &&
         a->l == b->l && a->present == b->present;
}

static u64 flags(const struct x86_vcpu *c) {
  return c->rflags & ~(u64)FL_RF;
}

bool same_state(struct machine *a, struct machine *b) {
  struct x86_vcpu *x = machine_vcpu(a), *y = machine_vcpu(b);
  if (flags(x) != flags(y) || x->cr0 != y->cr0 || x->cr2 != y->cr2 || x->cr3 != y->cr3 || x->cr4 != y->cr4 ||
      x->efer != y->efer || x->cpl != y->cpl)
    return false;
  for (unsigned n = 0; n < 6; n++)
    if (!same_segment(&x->seg[n], &y->seg[n])) return false;
  return same_extended(x, y);
}

bool same_memory(struct machine *a, struct machine *b) {
  u64 size;
  const u8 *x = machine_memory(a, &size), *y = machine_memory(b, &size);
  return !memcmp(x, y, size);
}

static void tell_memory(struct machine *a, struct machine *b) {
  u64 size;
  const u8 *x = machine_memory(a, &size), *y = machine_memory(b, &size);
  unsigned shown = 0;
  for (u64 n = 0; n < size && shown < 16; n += 8)
    if (memcmp(x + n, y + n, 8))
      printf("    [%llx] interpreter %016llx translator %016llx\n", (unsigned long long)n,
             *(const unsigned long long *)(const void *)(x + n), *(const unsigned long long *)(const void *)(y + n)),
          shown++;
}

void tell_state(struct machine *a, struct machine *b) {
  static const char *const names[16] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                        "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15"};
  struct x86_vcpu *x = machine_vcpu(a), *y = machine_vcpu(b);
  for (unsigned n = 0; n < 16; n++)
    printf("    %-3s interpreter %016llx translator %016llx%s\n", names[n], (unsigned long long)x->regs[n],
           (unsigned long long)y->regs[n], x->regs[n] == y->regs[n] ? "" : "  <");
  printf("    rip interpreter %llx translator %llx\n", (unsigned long long)x->regs[X86_REG_RIP],
         (unsigned long long)y->regs[X86_REG_RIP]);
  printf("    flags interpreter %llx translator %llx; cr2 %llx %llx; cpl %u %u; mxcsr %x %x\n", (unsigned long long)x->rflags,
         (unsigned long long)y->rflags, (unsigned long long)x->cr2, (unsigned long long)y->cr2, x->cpl, y->cpl, x->fpu.mxcsr,
         y->fpu.mxcsr);
  for (unsigned n = 0; n < 32; n++)
    if (memcmp(x->fpu.zmm[n], y->fpu.zmm[n], 64)) printf("    vector register %u differs\n", n);
  if (memcmp(x->fpu.fx, y->fpu.fx, 160)) printf("    x87 state differs\n");
  tell_memory(a, b);
}

/* The program's code is the test's own: it can be read where it is. */
void tell_code(struct machine *m, u64 at) {
  extern char __executable_start[], etext[];
  ZydisDisassembledInstruction d;
  for (unsigned n = 0; n < 32; n++) {
    if (at < (u64)(uintptr_t)__executable_start || at + 16 > (u64)(uintptr_t)etext) break;
    if (!ZYAN_SUCCESS(ZydisDisassembleIntel(ZYDIS_MACHINE_MODE_LONG_64, at, (const void *)(uintptr_t)at, 15, &d))) break;
    printf("    %llx: %s\n", (unsigned long long)at, d.text);
    if (d.info.meta.branch_type != ZYDIS_BRANCH_TYPE_NONE) break;
    at += d.info.length;
  }
}
