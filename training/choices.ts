/** The settings of training that are one of several words: for the command line, which loads nothing that trains. */
import type { AlignmentForm } from '../services/lib/model/graph/projector-training.ts';

export const ALIGNMENT_FORMS = ['frobenius', 'mse'] as const satisfies readonly AlignmentForm[];
/** How the learning rate falls after the warm-up. */
export const SCHEDULES = ['cosine', 'linear'] as const;
/** Formats of the frozen layers: 32-bit floats, or weights and activations of 8 bits, forward and backward. */
export const FROZEN_FORMATS = ['fp32', 'w8a8'] as const;
/** Linear layers of a projector. */
export const LAYER_COUNTS = ['2', '3', '4'] as const;
/** Languages of data sets: those of the paper's benchmarks. */
export const LANGUAGES = ['python', 'java', 'typescript', 'csharp', 'go'] as const;
/** Retrievers that need no encoder. */
export const DATASET_RETRIEVERS = ['jaccard', 'bm25'] as const;
