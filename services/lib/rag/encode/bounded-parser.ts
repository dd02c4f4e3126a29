/**
 * A parser of source that nobody has checked: whatever it is given, one parse takes a bounded time. What a parse does
 * cannot be interrupted, and it keeps the event loop from everybody else.
 */
import { type Grammar, loadGrammar, type Parser, type ParseState, type Tree } from './grammars.ts';

/**
 * Longest code that is parsed, in UTF-16 units: ten lines of code have some 400. All parsers share one memory, which
 * overflows at 10,000 characters of hostile C++ (`(a)*` repeated); after that no parser works.
 */
export const MAX_CHARACTERS = 2_000;
/**
 * Most words and punctuation marks of code that is parsed. A step of a parser cannot be interrupted, and its time grows
 * with the square of their number: in Python, 666 lines of C's comments (`/*` repeated) took 165 ms of CPU in one step,
 * and 300 of these marks take 10 to 15 ms. Ten lines of code have some 75; of 220,000 chunks of Python, TypeScript,
 * JavaScript and C fewer than 0.7 % have more than 300, mostly tables of numbers.
 */
const MAX_MARKS = 300;
const MARK = /[\p{L}\p{N}_]+|[^\s\p{L}\p{N}_]/gu;
/**
 * Steps that a parser may take, 10 to 20 ms; it reports a step every so many operations. Of 8,000 chunks of Python,
 * TypeScript, JavaScript and C++ none takes more than 21, and none more than 5 from its first error on. Nonsense takes
 * up to 60,000 steps or 4.8 s (`)-` repeated, in Rust). Those after an error are long. The limits are not a time,
 * because then an index would depend on how busy the machine was.
 */
const MAX_STEPS = 120;
const MAX_STEPS_AFTER_ERROR = 10;

export class BoundedParser {
  readonly #parser: Parser;

  private constructor(parser: Parser) {
    this.#parser = parser;
  }

  static async load(grammar: Grammar): Promise<BoundedParser> {
    return new BoundedParser((await loadGrammar(grammar)).parser);
  }

  /**
   * The tree of a text, which the caller must delete; undefined where the text is too long or would take too long.
   * @param text at most {@link MAX_CHARACTERS} UTF-16 units are parsed.
   */
  parse(text: string): Tree | undefined {
    if (text.length > MAX_CHARACTERS || hasMoreMarks(text, MAX_MARKS)) return undefined;
    const tree = this.#parser.parse(text, null, { progressCallback: stepLimit() });
    // Otherwise the parser would go on with this text when it is given the next one.
    if (!tree) this.#parser.reset();
    return tree ?? undefined;
  }

  dispose(): void {
    this.#parser.delete();
  }
}

function hasMoreMarks(text: string, most: number): boolean {
  let marks = 0;
  for (const _ of text.matchAll(MARK)) if (++marks > most) return true;
  return false;
}

/** Tells a parser, at each of its steps, whether it must give up. */
function stepLimit(): (state: ParseState) => boolean {
  let steps = 0;
  let afterError = 0;
  return ({ hasError }) => ++steps > MAX_STEPS || (hasError && ++afterError > MAX_STEPS_AFTER_ERROR);
}
