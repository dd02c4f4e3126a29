/** The code of a Jupyter notebook, without outputs (images as base64, mostly), prose and metadata. */
import { z } from 'zod';

const lines = z.union([z.string(), z.array(z.string())]);
const cell = z.object({
  cell_type: z.string(),
  /** Notebooks of format 3 call it `input`. */
  source: lines.optional(),
  input: lines.optional(),
});
const notebook = z.object({
  cells: z.array(cell).optional(),
  /** Where the cells lie in format 3. */
  worksheets: z.array(z.object({ cells: z.array(cell) })).optional(),
});

export const isNotebook = (path: string) => /\.ipynb$/i.test(path);

/** The sources of all code cells with an empty line between; undefined for a text that is not a notebook. */
export function codeOfNotebook(text: string): string | undefined {
  let parsed: ReturnType<typeof notebook.safeParse>;
  try {
    parsed = notebook.safeParse(JSON.parse(text));
  } catch {
    return undefined;
  }
  const cells = parsed.data?.cells ?? parsed.data?.worksheets?.flatMap((sheet) => sheet.cells);
  return cells
    ?.filter(({ cell_type }) => cell_type === 'code')
    .map(({ source, input }) => source ?? input ?? '')
    .map((each) => (typeof each === 'string' ? each : each.join('')))
    .join('\n\n');
}

/** A notebook with this code, for an indexer that takes the code out again. */
export const notebookOf = (code: string) => JSON.stringify({ cells: [{ cell_type: 'code', source: code }] });
