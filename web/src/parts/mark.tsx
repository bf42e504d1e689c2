/** The sign of Trunkline. */
export function Mark() {
  return (
    <svg class="mark" viewBox="0 0 32 32" aria-hidden="true">
      <rect width="32" height="32" rx="7" />
      <path d="M7 10h18M16 10v14" />
      <circle cx="7" cy="10" r="2.6" /><circle cx="25" cy="10" r="2.6" /><circle class="end" cx="16" cy="24" r="2.6" />
    </svg>
  );
}
