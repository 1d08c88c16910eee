/* Fuzz target: the instruction decoder, in each mode and with few and with all CPUID features.  Every input is an instruction,
 * #UD, or asks for more bytes; the answer does not depend on what lies behind the instruction. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "x86/cpuid/cpuid.h"
#include "x86/insn.h"
#include "x86/x86.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { LONGEST = 15 };

static struct x86_vcpu *cpu[2]; /* all features; those of a 486 */

static void make_cpus(void) {
  struct vm *vm;
  if (vm_create(&x86_arch, 0, &vm)) abort();
  for (unsigned n = 0; n < 2; n++) {
    struct vcpu *v;
    struct kvm_cpuid_entry2 *entries = calloc(X86_CPUID_MAX_ENTRIES, sizeof(*entries));
    u32 count = 0;
    if (!entries || vcpu_create(vm, n, &v) || x86_cpuid_supported(entries, X86_CPUID_MAX_ENTRIES, &count)) abort();
    cpu[n] = x86_vcpu(v);
    for (u32 k = 0; n && k < count; k++)
      if (entries[k].function == 1)
        entries[k].ecx = 0, entries[k].edx = 1;
      else if (entries[k].function)
        entries[k] = (struct kvm_cpuid_entry2){.function = 0x12345678};
    if (x86_cpuid_set(cpu[n], entries, count)) abort();
    free(entries);
  }
}

static void decode(const struct x86_vcpu *c, u32 mode, const u8 *bytes, unsigned avail) {
  struct x86_decode_ctx ctx = {.mode = mode, .cpuid = c->cpuid, .vm = x86_vm_of(cpu[0])};
  struct x86_insn i, again;
  u8 *exact = malloc(avail ? avail : 1); /* a sanitizer sees a byte too far */
  memcpy(exact, bytes, avail);
  memset(&i, 0, sizeof(i));
  int len = x86_decode(&ctx, exact, avail, &i);
  free(exact);
  if (len < 0 || len > (int)avail) abort();
  if (!len && avail >= LONGEST) abort(); /* an instruction cannot be longer */
  if (!len) return;
  if (!i.fn) abort();
  u8 other[LONGEST];
  memset(other, 0xa5, sizeof(other));
  memcpy(other, bytes, (size_t)len);
  memset(&again, 0, sizeof(again));
  int more = x86_decode(&ctx, other, sizeof(other), &again);
  if (again.fn != i.fn) abort();
  if (i.fn != x86_exec_ud && (more != len || again.op != i.op)) abort(); /* #UD: all bytes seen count */
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static const u32 modes[] = {X86_MODE_16, X86_MODE_32, X86_MODE_64};
  if (!cpu[0]) make_cpus();
  unsigned avail = size < LONGEST ? (unsigned)size : LONGEST;
  for (unsigned m = 0; m < ARRAY_SIZE(modes); m++)
    for (unsigned n = 0; n < 2; n++) decode(cpu[n], modes[m], data, avail);
  return 0;
}
