/** Which checkpoint of a run is the best one, and when a run has not become better for too long. */
import type { Validation } from './validation.ts';

/** What a run knows of its validations. It is part of each checkpoint. */
export interface Standing {
  /** The best validation after at least one step, and the number of steps before it. */
  readonly best: { readonly step: number; readonly validation: Validation } | undefined;
  /** Validations since the best one. */
  readonly stale: number;
}

export const NO_STANDING: Standing = { best: undefined, stale: 0 };

/** By exact match; then by edit similarity; then by cross-entropy, for models that get nothing right. */
export function isBetter(a: Validation, b: Validation): boolean {
  if (a.validEm !== b.validEm) return a.validEm > b.validEm;
  if (a.validEs !== b.validEs) return a.validEs > b.validEs;
  return a.validCe < b.validCe;
}

/** The standing after a validation; the first of equals stays the best. */
export function judged({ best, stale }: Standing, step: number, validation: Validation): Standing {
  if (best !== undefined && !isBetter(validation, best.validation)) return { best, stale: stale + 1 };
  return { best: { step, validation }, stale: 0 };
}
