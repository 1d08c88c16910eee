/* Where the VMM puts things in the guest's first megabyte. */
#ifndef VMM_BOOT_LAYOUT_H
#define VMM_BOOT_LAYOUT_H

/* Boot data, free for the guest's use once it has read it; loaders refuse kernels that want to be here. */
#define LAYOUT_BOOT_START  0x500u
#define LAYOUT_GDT         0x500u
#define LAYOUT_MBI         0x5000u /* multiboot information, or PVH start info */
#define LAYOUT_ZERO_PAGE   0x7000u /* struct boot_params */
#define LAYOUT_STACK_TOP   0x9000u
#define LAYOUT_PML4        0x9000u
#define LAYOUT_PDPT        0xa000u
#define LAYOUT_PD          0xb000u /* four pages */
#define LAYOUT_CMDLINE     0x10000u
#define LAYOUT_CMDLINE_MAX 0x10000u
#define LAYOUT_BOOT_END    0x20000u

/* The firmware area: described as reserved to the guest. */
#define LAYOUT_EBDA        0x9fc00u
#define LAYOUT_VGA         0xa0000u
#define LAYOUT_ACPI        0xe0000u /* RSDP first: inside the area that an OS searches (ACPI 6.4, 5.2.5.1) */
#define LAYOUT_ACPI_END    0xf8000u
#define LAYOUT_SMBIOS      0xf8000u
#define LAYOUT_SMBIOS_END  0xfa000u
#define LAYOUT_MPTABLE     0xfa000u /* inside 0xf0000-0xfffff (MP spec 1.4, 4.1) */
#define LAYOUT_MPTABLE_END 0x100000u
#define LAYOUT_HIGH        0x100000u

/* The hole below 4 GiB that holds PCI, I/O APIC, local APICs and what KVM needs on VMX. */
#define LAYOUT_HOLE_START   0xc0000000ull
#define LAYOUT_HOLE_END     0x100000000ull
#define LAYOUT_IOAPIC       0xfec00000u
#define LAYOUT_ECAM         0xfed00000u /* 1 MiB: PCI configuration space of bus 0 */
#define LAYOUT_LAPIC        0xfee00000u
#define LAYOUT_IDENTITY_MAP 0xfffbc000u
#define LAYOUT_TSS          0xfffbd000u

#endif
