/**
 * The samples of an evaluation as one page of HTML that needs nothing else: the code around the gap, the target, what
 * each arm wrote with its differences from the target marked, and the chunks that stood in its prompt (the paper's
 * Table 6, for all samples).
 */
import { escaped } from '../../training/report/chart.ts';
import { type ArmAnswer, chunkKey, type QualityResult, type SampleResult } from './result.ts';

/** Longest texts that are compared word by word; of longer ones only the common ends are found. */
const MAX_WORDS = 400;
const WORD = /\s+|[\p{L}\p{N}_]+|[^\s\p{L}\p{N}_]/gu;

export interface Piece {
  readonly kind: 'same' | 'missing' | 'extra';
  readonly text: string;
}

/** What a text has and lacks against the target, in order: a longest common subsequence of words and signs. */
export function differences(text: string, target: string): Piece[] {
  const [ours, theirs] = [text.match(WORD) ?? [], target.match(WORD) ?? []];
  let start = 0;
  while (start < Math.min(ours.length, theirs.length) && ours[start] === theirs[start]) start++;
  let end = 0;
  const rest = Math.min(ours.length, theirs.length) - start;
  while (end < rest && ours[ours.length - 1 - end] === theirs[theirs.length - 1 - end]) end++;
  const middle = between(ours.slice(start, ours.length - end), theirs.slice(start, theirs.length - end));
  return joined([
    { kind: 'same', text: ours.slice(0, start).join('') },
    ...middle,
    { kind: 'same', text: ours.slice(ours.length - end).join('') },
  ]);
}

function between(ours: readonly string[], theirs: readonly string[]): Piece[] {
  if (ours.length > MAX_WORDS || theirs.length > MAX_WORDS) {
    return [
      { kind: 'missing', text: theirs.join('') },
      { kind: 'extra', text: ours.join('') },
    ];
  }
  // Lengths of the longest common subsequences of what is left of both, [ours, theirs].
  const lengths = Array.from({ length: ours.length + 1 }, () => new Uint16Array(theirs.length + 1));
  for (let i = ours.length - 1; i >= 0; i--) {
    for (let j = theirs.length - 1; j >= 0; j--) {
      lengths[i]![j] =
        ours[i] === theirs[j] ? lengths[i + 1]![j + 1]! + 1 : Math.max(lengths[i + 1]![j]!, lengths[i]![j + 1]!);
    }
  }
  const pieces: Piece[] = [];
  let [i, j] = [0, 0];
  while (i < ours.length || j < theirs.length) {
    if (i < ours.length && j < theirs.length && ours[i] === theirs[j]) {
      pieces.push({ kind: 'same', text: ours[i]! });
      [i, j] = [i + 1, j + 1];
    } else if (j < theirs.length && (i === ours.length || lengths[i]![j + 1]! >= lengths[i + 1]![j]!)) {
      pieces.push({ kind: 'missing', text: theirs[j++]! });
    } else pieces.push({ kind: 'extra', text: ours[i++]! });
  }
  return pieces;
}

/** Neighbours of one kind as one piece; empty ones are left out. */
function joined(pieces: readonly Piece[]): Piece[] {
  const all: Piece[] = [];
  for (const piece of pieces) {
    const last = all.at(-1);
    if (piece.text === '') continue;
    if (last?.kind === piece.kind) all[all.length - 1] = { kind: last.kind, text: last.text + piece.text };
    else all.push(piece);
  }
  return all;
}

const TAG = { same: 'span', missing: 'del', extra: 'ins' } as const;

/** White space at the ends does not count in a score, so it is no difference. */
const marked = (text: string, target: string) =>
  differences(text.trim(), target.trim())
    .map((piece) => `<${TAG[piece.kind]}>${escaped(piece.text)}</${TAG[piece.kind]}>`)
    .join('');

const STYLE = `body{font:14px/1.5 system-ui,sans-serif;margin:2em auto;max-width:1280px;padding:0 1em;color:#222}
pre{margin:0;white-space:pre-wrap;overflow-wrap:anywhere;font:12px/1.45 ui-monospace,monospace}
article{border:1px solid #ddd;border-radius:6px;margin:1em 0;padding:.8em 1em}h2{font-size:14px;margin:0 0 .5em}
.code{background:#f6f8fa;padding:.5em}.target{background:#e8f5e9;padding:.5em}
.arms{display:grid;grid-template-columns:repeat(auto-fit,minmax(300px,1fr));gap:.8em;margin-top:.6em}
.arm{border-top:3px solid #999;padding-top:.3em}.right{border-color:#009E73}.wrong{border-color:#D55E00}
ins{background:#fde2d3;text-decoration:none}del{background:#d6f0e4;text-decoration:line-through}
nav{position:sticky;top:0;background:#fff;padding:.6em 0;border-bottom:1px solid #ddd}
button{margin-right:.5em}button[aria-pressed=true]{background:#0072B2;color:#fff}small{color:#666}`;

/** Filters by the classes of articles. The page holds no other code. */
const SCRIPT = `const buttons=[...document.querySelectorAll('button')];
for(const button of buttons)button.addEventListener('click',()=>{
const wanted=button.dataset.only;let shown=0;
for(const article of document.querySelectorAll('article')){
const show=wanted===''||article.classList.contains(wanted);article.hidden=!show;if(show)shown++}
for(const other of buttons)other.setAttribute('aria-pressed',String(other===button));
document.getElementById('shown').textContent=shown+' samples'});`;

/** What a sample is an example of. */
function classesOf({ answers }: SampleResult): string[] {
  const right = (answer: ArmAnswer | undefined) => answer?.scores.exactMatch === 1;
  const all = Object.values(answers);
  const others = Object.entries(answers).filter(([name]) => name !== 'off');
  const off = answers['off'];
  return [
    ...(all.some((answer) => right(answer) !== right(all[0])) ? ['differs'] : []),
    ...(off && !right(off) && others.some(([, answer]) => right(answer)) ? ['helped'] : []),
    ...(right(off) && others.some(([, answer]) => !right(answer)) ? ['harmed'] : []),
    ...(all.every((answer) => !right(answer)) ? ['wrong-everywhere'] : []),
  ];
}

const FILTERS = {
  '': 'all',
  differs: 'arms differ',
  helped: 'context helped',
  harmed: 'context harmed',
  'wrong-everywhere': 'wrong everywhere',
};

const FORM = { soft: ', a soft token', text: ', as text' };

function armBlock(name: string, answer: ArmAnswer, sample: SampleResult): string {
  const { scores, ce, promptTokens, softTokens, ttftMs, degraded, rewritten } = answer;
  const facts = [
    `EM ${scores.exactMatch}`,
    `ES ${(100 * scores.editSimilarity).toFixed(1)}`,
    `CE ${ce.toFixed(3)}`,
    `${promptTokens} tokens${softTokens > 0 ? `, ${softTokens} soft` : ''}`,
    `TTFT ${ttftMs.toFixed(0)} ms`,
    ...(degraded === null ? [] : [`lacks context: ${degraded}`]),
  ];
  const chunks = answer.chunks.map(
    (chunk) =>
      `<p><small>${escaped(chunkKey(chunk))}, score ${chunk.score.toFixed(3)}${chunk.form ? FORM[chunk.form] : ''}</small></p>` +
      `<pre class="code">${escaped(sample.chunks[chunkKey(chunk)] ?? '')}</pre>`,
  );
  const context = rewritten === null ? chunks : [`<pre class="code">${escaped(rewritten)}</pre>`];
  const title = rewritten === null ? `${chunks.length} chunks` : 'rewritten context';
  return `<div class="arm ${scores.exactMatch === 1 ? 'right' : 'wrong'}"><b>${escaped(name)}</b>
<pre>${marked(answer.text, sample.target)}</pre><small>${escaped(facts.join(' · '))}</small>
${context.length === 0 ? '' : `<details><summary>${title}</summary>${context.join('\n')}</details>`}</div>`;
}

function article(sample: SampleResult): string {
  const arms = Object.entries(sample.answers).map(([name, answer]) => armBlock(name, answer, sample));
  return `<article class="${classesOf(sample).join(' ')}">
<h2>${escaped(sample.id)} <small>${escaped(sample.path)}</small></h2>
<pre class="code">${escaped(sample.before)}<b>▮</b>${escaped(sample.after)}</pre>
<pre class="target">${escaped(sample.target)}</pre><div class="arms">${arms.join('\n')}</div></article>`;
}

export function samplesPage({ benchmark, model, samples }: QualityResult): string {
  const title = `${escaped(benchmark)}: ${samples.length} samples by ${escaped(model)}`;
  const buttons = Object.entries(FILTERS).map(
    ([only, text]) => `<button data-only="${only}" aria-pressed="${only === ''}">${text}</button>`,
  );
  return `<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"/><title>${title}</title><style>${STYLE}</style></head><body>
<h1>${title}</h1><nav>${buttons.join('')}<span id="shown">${samples.length} samples</span></nav>
<p><del>crossed out</del>: in the target and not in the completion; <ins>shaded</ins>: in the completion alone.</p>
${samples.map(article).join('\n')}
<script>${SCRIPT}</script></body></html>
`;
}
