/* Prints what the tables of the x86 engine say of ioctls and capabilities, as JSON for abi_doc.py. */
#include <stdio.h>
#include "api/caps.h"
#include "api/dispatch.h"
#include "x86/x86.h"

#define CAPS_END 512 /* above the last number any kernel knows */

static const char *const travel[] = {
    [ARG_NONE] = "none", [ARG_VALUE] = "value", [ARG_IN] = "in", [ARG_OUT] = "out", [ARG_INOUT] = "in/out", [ARG_USER] = "variable",
};

static void print_rows(const char *kind, const struct ioctl_row *row, unsigned n) {
  static const char *separator = "";
  for (unsigned k = 0; k < n; k++) {
    printf("%s\n    {\"on\": \"%s\", \"name\": \"%s\", \"number\": %lu, \"argument\": \"%s\"}", separator, kind, row[k].name, row[k].request, travel[row[k].arg]);
    separator = ",";
  }
}

int main(void) {
  const struct arch_ops *arch = &x86_arch;
  const char *separator = "";
  puts("{\n  \"ioctls\": [");
  print_rows("system", kvm_system_rows.row, kvm_system_rows.n);
  print_rows("system", arch->system_ioctls, arch->n_system_ioctls);
  print_rows("vm", kvm_vm_rows.row, kvm_vm_rows.n);
  print_rows("vm", arch->vm_ioctls, arch->n_vm_ioctls);
  print_rows("vcpu", kvm_vcpu_rows.row, kvm_vcpu_rows.n);
  print_rows("vcpu", arch->vcpu_ioctls, arch->n_vcpu_ioctls);
  print_rows("device", kvm_device_rows.row, kvm_device_rows.n);
  puts("\n  ],\n  \"capabilities\": {");
  for (int cap = 0; cap < CAPS_END; cap++) {
    int value = caps_check(arch, NULL, cap);
    if (value > 0) printf("%s\n    \"%d\": %d", separator, cap, value), separator = ",";
  }
  puts("\n  }\n}");
  return 0;
}
