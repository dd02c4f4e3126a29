/**
 * Where the code of a choice is to end: with its line, its statement or its block, or where it begins to say what
 * stands behind the cursor anyway. It decides while the code comes, and holds back what it may yet cut: trailing white
 * space, a line that may be the suffix's, and a line whose first word would show that the statement goes on.
 *
 *   line        the rest of the cursor's line; on a blank line, the first line that is not blank
 *   statement   the statement at the cursor, with its block if it has one
 *   block       the same for a statement with a block; else all statements up to the end of the block around the
 *               cursor, or at the margin of the file up to a blank line
 *
 * Places are line ends. A syntax tree tells whether the lines so far are whole statements, as far as it is given one
 * (see {@link Statements}) and can parse them. Beyond that, and for other languages, indentation and brackets tell: a
 * line that is deeper than the first belongs to its statement, and so does one within its brackets.
 */
import { MAX_CHARACTERS } from '../../lib/rag/encode/bounded-parser.ts';
import type { StatementState, Statements } from '../../lib/rag/encode/statements.ts';
import { Brackets } from '../../lib/text/brackets.ts';
import type { StopAt } from '../request.ts';

export interface CodeEndRules {
  readonly stopAt: StopAt | undefined;
  /** Columns that each line after the first has to be indented by; the code ends before one that is not. */
  readonly indent: number | undefined;
  /** The text before the cursor, or the end of it. */
  readonly before: string;
  /** The text after the cursor, or the beginning of it. */
  readonly after: string;
  /** undefined where no grammar knows the language. */
  readonly statements: Pick<Statements, 'judge'> | undefined;
}

/** UTF-16 units before the cursor in which the beginning of its statement is looked for: 25 lines of code. */
const LOOK_BACK = 1_000;
/** Longest line of the suffix that is looked for in the output, in UTF-16 units. */
const MAX_LINE = 256;
/** Characters of a line without which it is no sign that the suffix is repeated: any block has an `}` or an `fi`. */
const MIN_LINE = 3;
/** Longest first word of a line that is waited for, in characters. */
const MAX_WORD = 16;

/** First words and signs of lines that go on with the statement before, at its own indentation. */
const GOES_ON = /^(?:(?:else|elif|except|finally|catch|where)(?!\w)|[.{|]|\?\.|&&)/;
/** The same for languages without a grammar, such as Ruby, Lua and shells. */
const GOES_ON_ANYWHERE = /^(?:(?:elsif|elseif|rescue|ensure|end|fi|done|esac|then|do|until)(?!\w))/;
/** A line that belongs to the statement after it, where no syntax tree tells: a comment or an annotation. */
const LEADS_ON = /^\s*(?:@\w|#|\/[/*]|\*)/;
const CLOSER = /^[)\]}]/;
const CLOSERS_ONLY = /^[)\]}>"'`;,\s]+$/;
const QUOTE = /^["'`]/;

const isBlank = (text: string) => text.trim() === '';
/** White space at the beginning of a line, in characters; a tab is one, as in `n_indent` of llama.cpp. */
const indentationOf = (line: string) => line.length - line.trimStart().length;
const lastLineOf = (text: string) => text.slice(text.lastIndexOf('\n') + 1);

/** What is known where a line begins. */
interface LineStart {
  readonly at: number;
  /** Place after the last character before the line that is not white space. */
  readonly contentEnd: number;
  readonly isWithin: 'literal' | 'brackets' | 'block' | undefined;
  readonly state: StatementState | undefined;
  /** Whether the line before it is blank. */
  readonly afterBlank: boolean;
}

export class CodeEnd {
  readonly #rules: CodeEndRules;
  /** The lines of the statement at the cursor, as far as they stand before it. */
  readonly #head: string;
  /** The cursor's line, as far as it stands before it. */
  readonly #cursorLine: string;
  /** The rest of the cursor's line behind it, without white space around it, and the white space before it. */
  readonly #rest: string;
  readonly #gap: string;
  /** The next line behind the cursor that tells; undefined where none does. */
  readonly #next: string | undefined;
  /** Brackets of the head and the output. */
  readonly #brackets = new Brackets();
  /** Brackets that were open at the cursor and have not been closed since. */
  #openBefore: number;
  #text = '';
  /** The text up to here has been handed out. */
  #shown = 0;
  /** Place after the last character that is not white space. */
  #contentEnd = 0;
  #line: LineStart = { at: 0, contentEnd: 0, isWithin: undefined, state: undefined, afterBlank: false };
  /** Whether it is decided that the last line belongs to the output. */
  #lineDecided = true;
  /** Whether the last line begins with a bracket that closes none of its statement. */
  #lineClosesOuter = false;
  /** Indentation of the statement's first line, in characters; undefined as long as there is none. */
  #indentation: number | undefined;
  /** Whether the first statement has a block; undefined as long as nothing shows it. */
  #hasBlock: boolean | undefined;
  #stopped = false;

  constructor(rules: CodeEndRules) {
    const { stopAt, before, after } = rules;
    this.#rules = rules;
    this.#cursorLine = lastLineOf(before.slice(-LOOK_BACK));
    this.#head = stopAt === undefined ? '' : headOf(before.slice(-LOOK_BACK));
    for (const character of this.#head) this.#brackets.push(character);
    this.#openBefore = this.#brackets.depth;
    if (!isBlank(this.#head)) this.#indentation = indentationOf(this.#head);
    const [rest = '', ...lines] = stopAt === undefined ? [] : after.slice(0, 8 * MAX_LINE).split('\n');
    this.#rest = rest.length > MAX_LINE ? '' : rest.trim();
    this.#gap = rest.slice(0, indentationOf(rest));
    const next = lines.find((line) => !isBlank(line))?.trimEnd() ?? '';
    const tells = next.length <= MAX_LINE && next.trim().length >= MIN_LINE && !CLOSERS_ONLY.test(next);
    this.#next = tells ? next : undefined;
  }

  /** Whether the code has ended: no text comes after it. */
  get stopped(): boolean {
    return this.#stopped;
  }

  /** The text that can be shown after one more piece. It yields before it takes up to 20 ms for a syntax tree. */
  *push(piece: string): Generator<void, string> {
    if (this.#stopped) return '';
    for (const character of piece) {
      const cut = this.#take(character) ?? (character === '\n' ? yield* this.#endLine() : this.#withinLine());
      if (cut !== undefined) return this.#stopAt(cut);
    }
    return this.#show(this.#certain());
  }

  /** Takes a piece that is part of the output whatever it says. */
  pass(piece: string): string {
    for (const character of piece) {
      this.#take(character);
      if (character === '\n') this.#beginLine(undefined);
    }
    this.#lineDecided = true;
    return this.#show(this.#text.length);
  }

  /** The text that was held back, at the end of a sequence that has not ended here. */
  end(): string {
    if (this.#stopped) return '';
    const cut = this.#repeatsSuffix();
    return cut === undefined ? this.#show(this.#text.length) : this.#stopAt(cut);
  }

  #show(upTo: number): string {
    const text = this.#text.slice(this.#shown, upTo);
    this.#shown = Math.max(upTo, this.#shown);
    return text;
  }

  #stopAt(cut: number): string {
    this.#stopped = true;
    return this.#show(cut);
  }

  /** Takes one character. @returns where to cut, if the character closes what the rest of the cursor's line closes. */
  #take(character: string): number | undefined {
    const at = this.#text.length;
    this.#text += character;
    const closes = this.#brackets.push(character);
    if (isBlank(character)) return undefined;
    const isFirst = this.#contentEnd <= this.#line.at;
    this.#contentEnd = this.#text.length;
    if (isFirst) {
      this.#lineClosesOuter = closes === 'unmatched';
      // The head may hold the white space before the first line.
      this.#indentation ??= indentationOf(this.#lastLine());
    }
    const closesBefore = closes === 'unmatched' || (closes === 'matched' && this.#brackets.depth < this.#openBefore);
    this.#openBefore = Math.min(this.#openBefore, this.#brackets.depth);
    if (closesBefore && this.#rest.startsWith(character)) return at;
    const quoted = QUOTE.test(this.#rest) && CLOSERS_ONLY.test(this.#rest) && this.#rest.length > 1;
    return quoted && this.#text.endsWith(this.#rest) ? this.#text.length - this.#rest.length : undefined;
  }

  /** The last line as the file has it: the first one begins before the cursor. */
  #lastLine(): string {
    return (this.#line.at === 0 ? this.#cursorLine : '') + this.#text.slice(this.#line.at);
  }

  /** Where to cut once the first word of the last line shows that the line does not belong to the output. */
  #withinLine(): number | undefined {
    if (this.#lineDecided || this.#contentEnd <= this.#line.at) return undefined;
    const first = this.#text.slice(this.#line.at).trimStart();
    const { indent = 0 } = this.#rules;
    const isDeep = indentationOf(this.#text.slice(this.#line.at)) >= indent;
    const isOpen = isDeep && /^(?:\w+|[?&])$/.test(first) && first.length < MAX_WORD;
    return isOpen ? undefined : this.#decideLine(first);
  }

  /** @param first the beginning of the last line: its first word at least. */
  #decideLine(first: string): number | undefined {
    this.#lineDecided = true;
    const { stopAt, indent } = this.#rules;
    const columns = indentationOf(this.#text.slice(this.#line.at));
    const tooShallow = indent !== undefined && columns < indent;
    const over = (stopAt === 'statement' || stopAt === 'block') && this.#endsBefore(columns, first);
    return tooShallow || over ? this.#line.contentEnd : undefined;
  }

  #endsBefore(columns: number, first: string): boolean {
    const { isWithin, state, afterBlank } = this.#line;
    const indentation = this.#indentation ?? 0;
    if (!this.#hasContentBefore(this.#line.contentEnd)) return false;
    if (state === undefined) {
      if (isWithin === 'literal') return false;
      if (CLOSER.test(first)) return this.#lineClosesOuter;
      if (isWithin === 'block' && columns > indentation) this.#hasBlock ??= true;
      if (isWithin !== undefined) return false;
      if (LEADS_ON.test(lastLineOf(this.#text.slice(0, this.#line.contentEnd)))) return false;
    } else if (CLOSER.test(first)) return true; // a whole statement has no open bracket
    if (columns > indentation) {
      this.#hasBlock ??= true;
      return false;
    }
    if (columns < indentation) return true;
    if (GOES_ON.test(first) || (!this.#rules.statements && GOES_ON_ANYWHERE.test(first))) return false;
    this.#hasBlock ??= false;
    return this.#rules.stopAt === 'statement' || this.#hasBlock || (indentation === 0 && afterBlank);
  }

  /** Whether anything but white space stands in the statement before the place `end` of the output. */
  #hasContentBefore(end: number): boolean {
    return end > 0 || !isBlank(this.#rules.stopAt === 'line' ? this.#cursorLine : this.#head);
  }

  /** The last character was a line end. @returns where to cut. */
  *#endLine(): Generator<void, number | undefined> {
    const { stopAt } = this.#rules;
    const line = this.#text.slice(this.#line.at, -1);
    const cut =
      (this.#lineDecided || isBlank(line) ? undefined : this.#decideLine(line.trimStart())) ?? this.#repeatsSuffix();
    if (cut !== undefined) return cut;
    if (!this.#hasContentBefore(this.#contentEnd)) {
      this.#beginLine(undefined);
      return undefined;
    }
    if (stopAt === 'line') return this.#contentEnd;
    // A blank line changes nothing about the statement before it.
    const isNews = !isBlank(line) || this.#line.at === 0;
    const state = isNews ? yield* this.#judge() : this.#line.state;
    const ends = stopAt === 'statement' || (stopAt === 'block' && this.#hasBlock === true);
    if (state === 'over' && ends) return this.#contentEnd;
    this.#beginLine(state);
    return undefined;
  }

  #beginLine(state: StatementState | undefined): void {
    const { stopAt, indent } = this.#rules;
    const { inLongString, innermost } = this.#brackets;
    const inBrackets = innermost === undefined ? undefined : innermost === '{' ? 'block' : 'brackets';
    const isWithin = inLongString ? 'literal' : inBrackets;
    const afterBlank = this.#line.at > 0 && isBlank(this.#text.slice(this.#line.at));
    this.#line = { at: this.#text.length, contentEnd: this.#contentEnd, isWithin, state, afterBlank };
    this.#lineDecided = indent === undefined && stopAt !== 'statement' && stopAt !== 'block';
    this.#lineClosesOuter = false;
  }

  /** What the syntax tree says about the lines so far; undefined where it says nothing. */
  *#judge(): Generator<void, StatementState | undefined> {
    const { statements, stopAt } = this.#rules;
    if (statements === undefined || (stopAt !== 'statement' && stopAt !== 'block')) return undefined;
    // In a block that goes on after its first statement, all of it would be looked at.
    if (this.#hasBlock === false || this.#head.length + this.#text.length > MAX_CHARACTERS) return undefined;
    yield;
    const margin = new RegExp(`^[ \\t]{1,${this.#indentation || 1}}`, 'gm');
    const text = this.#head + this.#text;
    return statements.judge(this.#indentation ? text.replace(margin, '') : text);
  }

  /** Where to cut because the last line, which is whole, repeats what stands behind the cursor. */
  #repeatsSuffix(): number | undefined {
    const line = this.#lastLine().trimEnd();
    if (this.#next !== undefined && line === this.#next) return this.#line.contentEnd;
    if (this.#rest === '' || this.#line.at > 0 || this.#contentEnd < this.#rest.length) return undefined;
    if (!line.endsWith(this.#rest)) return undefined;
    const whole = this.#gap + this.#rest;
    return this.#contentEnd - (line.endsWith(whole) ? whole : this.#rest).length;
  }

  /** The end of the text that nothing can cut any more. */
  #certain(): number {
    const { at, contentEnd } = this.#line;
    if (!this.#lineDecided) return contentEnd;
    const line = this.#lastLine();
    if (this.#next !== undefined && line.length <= MAX_LINE && this.#next.startsWith(line.trimEnd())) return contentEnd;
    if (this.#rest === '' || at > 0) return this.#contentEnd;
    return Math.min(this.#contentEnd, this.#restBegins(this.#gap + this.#rest), this.#restBegins(this.#rest));
  }

  /** The place from which on the text may be the beginning of `rest`; its length where it is not. */
  #restBegins(rest: string): number {
    for (let length = Math.min(rest.length, this.#text.length); length > 0; length--) {
      if (rest.startsWith(this.#text.slice(-length))) return this.#text.length - length;
    }
    return this.#text.length;
  }
}

/**
 * The lines of the statement at the cursor that stand before it: from the line on which brackets around the cursor
 * were opened, or else the cursor's line.
 * @param before the end of the text before the cursor.
 */
function headOf(before: string): string {
  const brackets = new Brackets();
  for (const character of before) brackets.push(character);
  return before.slice(before.lastIndexOf('\n', brackets.openSince ?? before.length) + 1);
}
