/* From a mnemonic to the families that have a row for it. */
#include <stdlib.h>
#include "x86/decode/table.h"

/* Several families may have rows for one mnemonic (MOV: general, segment and control registers); they are asked in this order. */
extern const struct x86_op_family x86_family_alu, x86_family_mov, x86_family_stack, x86_family_branch, x86_family_shift, x86_family_muldiv,
    x86_family_string, x86_family_bits, x86_family_bmi, x86_family_cmpxchg, x86_family_bcd, x86_family_misc, x86_family_far, x86_family_segment, x86_family_system, x86_family_xsave, x86_family_mxcsr;

static const struct x86_op_family *const families[] = {
    &x86_family_alu,    &x86_family_mov,  &x86_family_stack, &x86_family_branch,  &x86_family_shift,  &x86_family_muldiv, &x86_family_string,
    &x86_family_bits,   &x86_family_bmi,  &x86_family_cmpxchg, &x86_family_bcd, &x86_family_misc, &x86_family_far,   &x86_family_segment, &x86_family_system, &x86_family_xsave, &x86_family_mxcsr,
};

#define SELECTS 4

static x86_select_fn *selects[ZYDIS_MNEMONIC_MAX_VALUE + 1][SELECTS];

void x86_table_build(void) {
  for (size_t f = 0; f < ARRAY_SIZE(families); f++)
    for (unsigned n = 0; n < families[f]->n; n++) {
      const struct x86_op_row *row = &families[f]->rows[n];
      unsigned k = 0;
      while (selects[row->mnemonic][k]) k++;
      if (k == SELECTS - 1) abort(); /* a mistake in the tables, not in the input */
      selects[row->mnemonic][k] = row->select;
    }
}

bool x86_table_known(unsigned mnemonic) { return selects[mnemonic][0] != NULL; }

x86_exec_fn *x86_table_select(const struct x86_decoded *d, struct x86_insn *i) {
  x86_select_fn *const *s = selects[d->insn.mnemonic];
  x86_exec_fn *fn = NULL;
  for (unsigned k = 0; s[k] && !fn; k++) fn = s[k](d, i);
  return fn;
}
