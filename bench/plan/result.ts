/** The result of `llavacode plan`. */
import type { Rates } from '../../services/lib/numeric/cost-model.ts';
import type { Plan, PlanRequest, Validation } from './plan.ts';

export interface PlanResult {
  readonly rates: Rates;
  readonly request: Omit<PlanRequest, 'rate'>;
  readonly plans: readonly Plan[];
  readonly validation: readonly Validation[];
}
