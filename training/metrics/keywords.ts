/** The words that metrics do not take for names, or weigh more than names, by language. */

/** Languages that code is scored in. */
export const SCORED_LANGUAGES = ['python', 'java', 'javascript', 'typescript', 'csharp'] as const;
export type ScoredLanguage = (typeof SCORED_LANGUAGES)[number];

const words = (text: string): ReadonlySet<string> => new Set(text.split(/\s+/).filter((word) => word !== ''));
const withMore = (some: ReadonlySet<string>, more: string): ReadonlySet<string> => new Set([...some, ...words(more)]);

/** Python's reserved words (`keyword.kwlist`). */
const PYTHON = words(`
  False None True and as assert async await break class continue def del elif else except finally for from global if
  import in is lambda nonlocal not or pass raise return try while with yield`);

const JAVASCRIPT = words(`
  await break case catch class const continue debugger default delete do else enum export extends false finally for
  function if implements import in instanceof interface let new null package private protected public return super
  switch static this throw try True typeof var void while with yield`);

const JAVA = words(`
  abstract assert boolean break byte case catch char class const continue default do double else enum extends final
  finally float for goto if implements import instanceof int interface long native new package private protected public
  return short static strictfp super switch synchronized this throw throws transient try void volatile while`);

const CSHARP = words(`
  abstract as base bool break byte case catch char checked class const continue decimal default delegate do double else
  enum event explicit extern finally fixed float for foreach goto if implicit in int interface internal is lock long
  namespace new null object operator out override params private protected public readonly ref return sbyte sealed short
  sizeof stackalloc static string struct switch this throw try typeof uint ulong unchecked unsafe ushort using virtual
  void volatile while`);

/**
 * CodeBLEU's lists, odd words included (JavaScript's `True`). It has none for TypeScript, which takes JavaScript's.
 * Python's is CodeXGLUE's; the package on PyPI adds to it.
 */
export const CODE_BLEU_KEYWORDS: Readonly<Record<ScoredLanguage, ReadonlySet<string>>> = {
  python: PYTHON,
  java: JAVA,
  javascript: JAVASCRIPT,
  typescript: JAVASCRIPT,
  csharp: withMore(
    CSHARP,
    `false true add alias ascending async await by descending dynamic equals from get global group into join let nameof
     notnull on orderby partial remove select set unmanaged value var when where yield`,
  ),
};

/** The words that CodeBLEU's package on PyPI (0.7.0) adds to Python's. */
export const PIP_PYTHON_KEYWORDS = withMore(PYTHON, 'match case type');

/** CrossCodeEval's lists (from dpu-utils): literals such as `true` are names to it, and Python's `None` is not. */
export const CCEVAL_KEYWORDS: Readonly<Record<ScoredLanguage, ReadonlySet<string>>> = {
  python: new Set([...PYTHON].filter((word) => word !== 'True' && word !== 'False')),
  java: withMore(JAVA, 'var'),
  ...typescriptOfCceval(),
  csharp: CSHARP,
};

/** CrossCodeEval has no JavaScript; its list for TypeScript has all of JavaScript's words. */
function typescriptOfCceval() {
  const list = words(`
    break case catch class const continue debugger default delete do else export extends finally for function if import
    in instanceof new return super switch this throw try typeof var void while with yield enum implements interface let
    package private protected public static`);
  return { javascript: list, typescript: list };
}
