/* The decoder's flag sets against the host: a case is run twice with one flag changed.
 *
 * x86_insn.flags_written must hold every flag that may change; flags_read every flag whose old value may show in anything but itself, or survive in it although
 * it is in flags_written.  What is in flags_written and not in flags_read is dead before the instruction: a translator relies on that. */
#include <stdio.h>
#include <string.h>
#include "diff.h"
#include "x86/regs.h"

static const u32 flag_of[6] = {FL_CF, FL_PF, FL_AF, FL_ZF, FL_SF, FL_OF};
static const char *const names[6] = {"CF", "PF", "AF", "ZF", "SF", "OF"};
static u8 before[ARENA_SIZE], after[ARENA_SIZE];

static void copy_arena(u8 *to, bool restore) {
  for (unsigned p = 0; p < ARENA_PAGES; p++) {
    u8 *arena = (u8 *)ARENA_BASE + p * PAGE_SIZE, *saved = to + p * PAGE_SIZE;
    if (arena_map[p] == PAGE_RW) memcpy(restore ? arena : saved, restore ? saved : arena, PAGE_SIZE);
  }
}

static bool tell(const struct diff_case *k, const char *what, unsigned flag) {
  static u8 told[ZYDIS_MNEMONIC_MAX_VALUE + 1];
  if (told[k->insn.mnemonic] & 1 << flag) return false;
  told[k->insn.mnemonic] |= 1 << flag;
  printf("%s %s: %s  [", ZydisMnemonicGetString(k->insn.mnemonic), names[flag], what);
  for (unsigned n = 0; n < k->len; n++) printf("%s%02x", n ? " " : "", k->code[n]);
  printf("]\n");
  return true;
}

bool check_flags(struct diff_case *k) {
  static struct diff_state first, second;
  u8 read, written;
  unsigned f = rnd_below(6);
  u32 bit = flag_of[f];
  if (!engine_flags(k, &read, &written)) return true;
  copy_arena(before, false);
  host_run(k, &first);
  copy_arena(after, false);
  copy_arena(before, true);
  k->in.rflags ^= bit;
  host_run(k, &second);
  k->in.rflags ^= bit;
  bool memory = true;
  for (unsigned p = 0; p < ARENA_PAGES; p++)
    if (arena_map[p] == PAGE_RW) memory &= !memcmp(after + p * PAGE_SIZE, (u8 *)ARENA_BASE + p * PAGE_SIZE, PAGE_SIZE);
  copy_arena(before, true);
  if (first.vector >= 0 || second.vector >= 0 || k->branch) return true; /* a branch goes on elsewhere: its address would differ */
  bool same = memory && !memcmp(first.gpr, second.gpr, diff_gprs(k->mode) * sizeof(first.gpr[0]));
  u64 differ = (first.rflags ^ second.rflags) & FL_ARITH, changed = (first.rflags ^ k->in.rflags) & FL_ARITH;
  bool ok = true;
  if ((!same || differ & ~(u64)bit) && !(read >> f & 1)) ok = !tell(k, "is read", f);
  if ((differ & bit) && (written & ~read) >> f & 1) ok = !tell(k, "survives", f);
  for (unsigned n = 0; n < 6; n++)
    if ((changed & flag_of[n]) && !(written >> n & 1)) ok &= !tell(k, "is written", n);
  return ok;
}
