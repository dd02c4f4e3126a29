/** What `bench speculation` has found: speeds by trace, or with `--identity` whether answers are the same. */
import type { IdentityResult } from './identity.ts';
import type { TraceResult } from './measure.ts';

export interface SpeculationResult {
  readonly model: string;
  /** None of a run with --identity. */
  readonly traces: readonly TraceResult[];
  readonly identity?: IdentityResult;
}
