/** How the frozen language model computes: formats of its weights, forward and backward. */
import { PROMPT_FORMATS } from '../../services/lib/model/bundle/weight-formats.ts';
import type { FROZEN_FORMATS } from '../choices.ts';
import type { ModelPlace } from './pass.ts';

export function formatsOf(
  frozen: (typeof FROZEN_FORMATS)[number],
): Required<Pick<ModelPlace, 'layers' | 'backwardLayers' | 'packWeights'>> {
  // See SessionOptions: in 32-bit floats a packed copy of each matrix for each direction costs more than it gains.
  if (frozen !== 'w8a8') return { layers: frozen, backwardLayers: 'fp32', packWeights: false };
  return { layers: PROMPT_FORMATS, backwardLayers: 'w8a8 by row', packWeights: true };
}
