/* Names of the vCPU's fields, for listings of code that finds them by offset. */
#ifndef X86_TRANSLATE_FIELDS_H
#define X86_TRANSLATE_FIELDS_H

#include "base/types.h"

/* Writes the name of what lies there, "" where none is known.  indexed: the offset is of an array whose element a register
 * chooses. */
#define FIELD_NAME_MAX 48
void field_name(s64 offset, bool indexed, char name[FIELD_NAME_MAX]);

#endif
