/**
 * Prompts that clients have put together themselves: `<|fim_prefix|>LEFT<|fim_suffix|>RIGHT<|fim_middle|>`, in a form
 * of the served model's own family. They are taken apart, so that retrieval sees the cursor, a cut leaves out what is
 * far from it, and the gateway's own order applies.
 */
import type { PromptFormat } from './prompt-format.ts';
import type { Tokenizer } from './tokenizer.ts';

/** A client's prompt taken apart. */
export interface ClientFrame {
  /** The text before the frame, in which names are tokens: files that the client has put there as context. */
  readonly head: string;
  /** The text before the cursor. */
  readonly left: string;
  /** The text after the cursor. */
  readonly right: string;
}

/**
 * Takes a prompt apart, in steps. undefined if it does not have a form of the model's family, or if other special
 * tokens stand within the frame: then it is a prompt as it is.
 */
export function* clientFrame(
  tokenizer: Pick<Tokenizer, 'addedTokens' | 'isSpecial'>,
  { name, frame, forms }: Pick<PromptFormat, 'name' | 'frame' | 'forms'>,
  prompt: string,
): Generator<void, ClientFrame | undefined> {
  if (frame === undefined) return undefined;
  const found = name === 'codellama' ? spelledOut(frame, prompt) : [];
  for (const token of tokenizer.addedTokens(prompt)) {
    if (token === undefined) {
      yield;
      continue;
    }
    const isFrame = frame.includes(token.id);
    const isBefore = found.length === 0 || token.end <= found[0]!.start;
    if (!isFrame && (isBefore || !tokenizer.isSpecial(token.id))) continue;
    if (!isFrame || found.length === frame.length) return undefined;
    found.push(token);
  }
  if (found.length < frame.length) return undefined;
  const head = prompt.slice(0, found[0]!.start);
  const between = found.map(({ end }, i) => prompt.slice(end, found[i + 1]?.start));
  for (const form of Object.values(forms)) {
    const sides = sidesIn(
      form,
      found.map(({ id }) => id),
      between,
    );
    if (sides) return { head, ...sides };
  }
  return undefined;
}

/** A token of a frame in a prompt. */
interface Mark {
  readonly id: number;
  readonly start: number;
  readonly end: number;
}

/** Names of Code Llama's frame as Ollama's and Continue's templates write them: `<PRE> LEFT <SUF>RIGHT <MID>`. */
const SPELLED = ['<PRE>', '<SUF>', '<MID>'];

/**
 * The frame of a prompt for Code Llama that has it without the `▁` of its tokens; empty where not each name stands
 * there once. That `▁` is the space before a name, and LEFT begins with the space that SentencePiece puts there.
 * @param frame ids of the names.
 */
function spelledOut(frame: readonly number[], prompt: string): Mark[] {
  const marks: Mark[] = [];
  for (const [i, name] of SPELLED.entries()) {
    const at = prompt.indexOf(name);
    if (at < 0 || at !== prompt.lastIndexOf(name) || prompt[at - 1] === '▁') return [];
    const end = at + name.length;
    const beginsLeft = name !== '<SUF>' && prompt[end] === ' ';
    marks.push({ id: frame[i]!, start: prompt[at - 1] === ' ' ? at - 1 : at, end: beginsLeft ? end + 1 : end });
  }
  return marks.sort((a, b) => a.start - b.start);
}

/**
 * The two sides of a prompt that has a form; undefined if it does not have it.
 * @param ids the frame's tokens in the prompt's order.
 * @param between the text after each of them.
 */
function sidesIn(
  form: NonNullable<PromptFormat['forms']['psm']>,
  ids: readonly number[],
  between: readonly string[],
): Pick<ClientFrame, 'left' | 'right'> | undefined {
  const sides = { left: '', right: '' };
  let token = -1;
  let isTaken = true;
  for (const part of form) {
    if (typeof part !== 'number') {
      sides[part] = between[token] ?? '';
      isTaken = true;
      continue;
    }
    // A text where the form has none.
    if (!isTaken && between[token] !== '') return undefined;
    if (ids[++token] !== part) return undefined;
    isTaken = false;
  }
  return isTaken || between[token] === '' ? sides : undefined;
}
