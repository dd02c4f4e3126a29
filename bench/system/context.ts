/** The kinds of context that a prompt of a bench can have, and their lengths. */
import { RAG_MODES, type RagMode } from '../../services/gateway/request.ts';

export const CONTEXTS = RAG_MODES;
export type ContextMode = RagMode;

/** Soft tokens of a compressed context: one per chunk. */
export const SOFT_TOKENS = 10;

/** Chunks of a mixed context that stand as text. */
export const MIXED_TEXTS = 1;

/** Tokens that a context of each kind adds to a prompt; a mixed one adds less where its chunk of text is short. */
export const contextTokens = (context: ContextMode) =>
  ({ compressed: SOFT_TOKENS, mixed: 100, text: 500, off: 0 })[context];
