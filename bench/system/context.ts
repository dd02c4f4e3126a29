/** The kinds of context that a prompt of a bench can have, and their lengths. */
import { RAG_MODES, type RagMode } from '../../services/gateway/request.ts';

export const CONTEXTS = RAG_MODES;
export type ContextMode = RagMode;

/** Soft tokens of a compressed context: one per chunk. */
export const SOFT_TOKENS = 10;

/** Tokens that a context of each kind adds to a prompt. */
export const contextTokens = (context: ContextMode) => ({ compressed: SOFT_TOKENS, text: 500, off: 0 })[context];
