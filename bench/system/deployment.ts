/** The deployments that benches compare: a mode with a number of workers. */

export interface Deployment {
  readonly mode: 'disaggregated' | 'colocated';
  /** Number of prefill workers; in colocated mode, of all workers. */
  readonly prefill: number;
  readonly decode: number;
}

export const COLOCATED: Deployment = { mode: 'colocated', prefill: 1, decode: 0 };
export const DISAGGREGATED: Deployment = { mode: 'disaggregated', prefill: 1, decode: 1 };
export const BOTH: readonly Deployment[] = [COLOCATED, DISAGGREGATED];

export const deploymentName = ({ mode, prefill, decode }: Deployment) =>
  mode === 'colocated' ? `colocated ×${prefill}` : `disaggregated ${prefill}P:${decode}D`;
