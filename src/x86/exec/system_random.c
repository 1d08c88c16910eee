/* RDRAND and RDSEED: the host's instructions where it has them, else the kernel's generator. */
#include <cpuid.h>
#include <pthread.h>
#include <sys/random.h>
#include "x86/exec/exec.h"
#include "x86/exec/system.h"

static bool host_rdrand, host_rdseed;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void look(void) {
  u32 a, b, c, d;
  if (__get_cpuid(1, &a, &b, &c, &d)) host_rdrand = c & bit_RDRND;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) host_rdseed = b & bit_RDSEED;
}

static bool from_host(bool seed, u64 *v) {
  u8 ok;
  if (seed ? !host_rdseed : !host_rdrand) return false;
  if (seed)
    __asm__ volatile("rdseed %0; setc %1" : "=r"(*v), "=qm"(ok) : : "cc");
  else
    __asm__ volatile("rdrand %0; setc %1" : "=r"(*v), "=qm"(ok) : : "cc");
  return ok;
}

/* CF tells success; the other arithmetic flags are cleared (SDM Vol. 2B, RDRAND). */
static int finish(struct x86_vcpu *c, const struct x86_insn *i, bool seed) {
  u64 v = 0;
  bool ok = from_host(seed, &v) || getrandom(&v, sizeof(v), GRND_NONBLOCK) == (ssize_t)sizeof(v);
  put_size(c, i->rm, i->opsize, ok ? v : 0);
  c->rflags = (c->rflags & ~(u64)FL_ARITH) | (ok ? FL_CF : 0);
  return X86_OK;
}

static int exec_rdrand(struct x86_vcpu *c, const struct x86_insn *i) {
  return finish(c, i, false);
}
static int exec_rdseed(struct x86_vcpu *c, const struct x86_insn *i) {
  return finish(c, i, true);
}

x86_exec_fn *x86_select_random(const struct x86_decoded *d, struct x86_insn *i) {
  pthread_once(&once, look);
  x86_operands(d, i);
  return d->insn.mnemonic == ZYDIS_MNEMONIC_RDSEED ? exec_rdseed : exec_rdrand;
}
