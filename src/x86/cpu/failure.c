/* KVM_EXIT_INTERNAL_ERROR with suberror EMULATION: guest code that KVM would give to its instruction emulator in vain
 * (api.rst 7.27, KVM_CAP_EXIT_ON_EMULATION_FAILURE). */
#include <string.h>
#include "core/memslot.h"
#include "x86/cpu/cpu.h"
#include "x86/insn.h"
#include "x86/mmu/access.h"
#include "x86/x86.h"

/* Instruction bytes at RIP on one page, without the guest noticing; how many. */
static unsigned peek_code(struct x86_vcpu *c, u8 *bytes, unsigned max) {
  u64 ip = c->cur ? x86_insn_ip(c, c->cur) : c->rip, lin = c->code64 ? ip : (u32)(ip + c->seg[SEG_CS].base);
  unsigned n = MIN(max, (unsigned)(PAGE_SIZE - (lin & (PAGE_SIZE - 1))));
  struct x86_walk w;
  if (x86_walk_page(c, lin, ACC_EXEC, c->cpl == 3, false, false, &w)) return 0;
  return vm_read_gpa(c->core.vm, w.gpa, bytes, n) ? 0 : n;
}

int x86_emulation_failure(struct x86_vcpu *c) {
  struct kvm_run *run = c->core.run;
  u8 bytes[sizeof(run->emulation_failure.insn_bytes)];
  unsigned n = peek_code(c, bytes, sizeof(bytes));
  memset(&run->internal, 0, sizeof(run->internal));
  run->exit_reason = KVM_EXIT_INTERNAL_ERROR;
  run->emulation_failure.suberror = KVM_INTERNAL_ERROR_EMULATION;
  run->emulation_failure.ndata = 1; /* the flags */
  if (!n) return X86_EXIT;
  run->emulation_failure.ndata = 3; /* length and bytes are two more words */
  run->emulation_failure.flags = KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES;
  run->emulation_failure.insn_size = (u8)n;
  memset(run->emulation_failure.insn_bytes, 0x90, sizeof(bytes));
  memcpy(run->emulation_failure.insn_bytes, bytes, n);
  return X86_EXIT;
}
