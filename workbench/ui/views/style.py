"""The app's style sheet: colours of the JupyterLab theme, so that light and dark follow by themselves."""

from __future__ import annotations

CSS = """
.workbench { container-type: inline-size; max-width: 1180px; color: var(--jp-ui-font-color1, #1b1f24);
  font-family: var(--jp-ui-font-family, system-ui, sans-serif); overflow: visible; }
.workbench .widget-html-content, .workbench .jupyter-widgets { line-height: 1.5; }
.workbench .widget-html-content { font-size: 13px; min-width: 0; max-width: 100%; flex: 1 1 auto; }
.workbench .widget-html { min-width: 0; max-width: 100%; }
.workbench .wb-page > * { max-width: calc(100% - 4px); }
.workbench h2 { font-size: 17px; margin: 14px 0 4px; font-weight: 600; }
.workbench h3 { font-size: 14px; margin: 14px 0 2px; font-weight: 600; }
.workbench p { margin: 4px 0; max-width: 75ch; }
.workbench .wb-quiet { color: var(--jp-ui-font-color2, #57606a); }
.workbench .wb-name { overflow-wrap: anywhere; }
.workbench .wb-error { border: 1px solid var(--jp-error-color1, #b3261e); border-left-width: 6px; padding: 6px 10px;
  margin: 6px 0; white-space: pre-wrap; overflow-wrap: anywhere; }
.workbench .wb-error b, .workbench .wb-failed { color: var(--jp-error-color1, #b3261e); }
.workbench .wb-status { border-bottom: 1px solid var(--jp-border-color2, #d0d7de); padding: 4px 0; min-height: 22px; }
.workbench .wb-scroll { overflow-x: auto; max-width: 100%; }
.workbench table { border-collapse: collapse; font-size: 12.5px; margin: 6px 0; }
.workbench th, .workbench td { text-align: left; padding: 4px 12px 4px 0; vertical-align: top; white-space: nowrap;
  border-bottom: 1px solid var(--jp-border-color2, #d0d7de); }
.workbench td.wb-wrap { white-space: normal; overflow-wrap: anywhere; min-width: 180px; }
.workbench td.wb-number, .workbench th.wb-number { text-align: right; font-variant-numeric: tabular-nums; }
.workbench th { font-weight: 600; color: var(--jp-ui-font-color2, #57606a); }
.workbench td small, .workbench th small { font-weight: 400; color: var(--jp-ui-font-color2, #57606a); display: block; }
.workbench th[scope="row"] { color: var(--jp-ui-font-color1, #1b1f24); }
.workbench tr.wb-best td, .workbench tr.wb-best th { background: var(--jp-layout-color2, #f0f2f4); }
.workbench progress { width: 110px; height: 10px; accent-color: var(--jp-brand-color1, #1976d2); vertical-align: middle; }
.workbench pre { font-family: var(--jp-code-font-family, monospace); font-size: 12px; white-space: pre-wrap;
  overflow-wrap: anywhere; max-height: 260px; overflow-y: auto; margin: 4px 0; padding: 6px 8px;
  background: var(--jp-layout-color2, #f0f2f4); color: var(--jp-ui-font-color1, #1b1f24); }
.workbench code { font-family: var(--jp-code-font-family, monospace); font-size: 12px; padding: 0 3px;
  background: var(--jp-layout-color2, #f0f2f4); color: var(--jp-ui-font-color1, #1b1f24); }
.workbench textarea { font-family: var(--jp-code-font-family, monospace); font-size: 12px; min-height: 220px;
  box-sizing: border-box; }
.workbench .wb-short textarea { min-height: 48px; font-family: inherit; }
.workbench .wb-row { flex-flow: row wrap; align-items: center; gap: 4px 10px; overflow: visible; }
.workbench .wb-beside { flex: 1 1 100%; }
.workbench .wb-tight > .widget-label { width: auto !important; padding-right: 8px; }
.workbench .wb-actions { margin-left: 138px; }
.workbench .wb-field > .widget-label { text-align: left; }
.workbench .wb-page, .workbench .jupyter-widget-stack, .workbench .widget-stack { overflow: visible; width: 100%; }
.workbench .wb-group { min-width: 130px; }
.workbench .jupyter-widget-Accordion, .workbench .widget-accordion { margin: 6px 0; }
.workbench .jupyter-widget-Collapse-header span, .workbench .wb-sticky tr.wb-chosen small, .workbench .wb-sticky tr:hover small,
.workbench .wb-chosen small { color: var(--jp-ui-font-color1, #1b1f24) !important; }
.workbench .widget-checkbox { width: auto; }
.workbench .widget-checkbox label { cursor: pointer; }
.workbench .widget-checkbox input:disabled + span, .workbench .wb-off span { opacity: .55; }
.workbench .wb-tabs { width: 100%; min-width: 0; margin: 0; overflow: visible; display: block; }
.workbench .wb-tabs > .lm-TabBar { overflow: visible; border: none; max-width: 100%; margin: 4px 0 0; }
.workbench .wb-tabs > .lm-TabBar > .lm-TabBar-content { flex-wrap: wrap; align-items: flex-end; width: 100%; margin: 0;
  border-bottom: 1px solid var(--jp-border-color2, #d0d7de); }
.workbench .wb-tabs > .lm-TabBar .lm-TabBar-tab { flex: 0 0 auto; min-width: 0; min-height: 0; max-width: none; margin: 0;
  padding: 5px 14px; border: none; background: none; transform: none; line-height: 1.5; font-size: 13px;
  color: var(--jp-ui-font-color1, #1b1f24); }
.workbench .wb-tabs > .lm-TabBar .lm-TabBar-tab::before { display: none; }
.workbench .wb-tabs > .lm-TabBar .lm-TabBar-tab:hover { background: var(--jp-layout-color2, #f0f2f4); }
.workbench .wb-tabs > .lm-TabBar .lm-TabBar-tab.lm-mod-current { font-weight: 700;
  box-shadow: inset 0 -3px 0 var(--jp-brand-color1, #1976d2); }
.workbench .wb-tabs > .lm-TabBar .lm-TabBar-addButton { display: none; }
.workbench .wb-tabs > .widget-tab-contents { border: none; padding: 0; overflow: visible; background: none; display: block;
  width: 100%; min-width: 0; }
.workbench .wb-tabs > .widget-tab-contents > * { min-width: 0; }
.workbench .jupyter-button:focus-visible, .workbench input:focus-visible, .workbench select:focus-visible,
.workbench textarea:focus-visible, .workbench .lm-TabBar-tab:focus-visible, .workbench summary:focus-visible,
.workbench a:focus-visible {
  outline: 3px solid var(--jp-brand-color1, #1976d2) !important; outline-offset: 1px; }
.workbench img { max-width: min(100%, 780px); height: auto; }
.workbench .wb-dark { display: none; }
[data-jp-theme-light="false"] .workbench { --jp-widgets-dropdown-arrow: url("data:image/svg+xml,%3Csvg \
xmlns='http://www.w3.org/2000/svg' viewBox='0 0 18 18'%3E%3Cpath d='M5 7l4 4 4-4' fill='none' stroke='%23fff' \
stroke-width='2'/%3E%3C/svg%3E"); }
[data-jp-theme-light="false"] .workbench .wb-dark { display: block; }
[data-jp-theme-light="false"] .workbench .wb-light { display: none; }
.workbench .wb-cards { display: flex; flex-flow: row wrap; gap: 12px; margin: 8px 0; }
.workbench figure { margin: 0; width: 132px; font-size: 12px; }
.workbench figure img { width: 96px; height: 96px; object-fit: contain; image-rendering: pixelated;
  border: 1px solid var(--jp-border-color2, #d0d7de); background: #fff; }
.workbench figure.wb-text { width: 100%; max-width: 75ch; }
.workbench li { max-width: 90ch; }
.workbench summary { cursor: pointer; padding: 3px 0; overflow-wrap: anywhere; }
.workbench .wb-layer { display: grid; grid-template-columns: minmax(120px, 1.2fr) 2fr 2fr; gap: 2px 10px; align-items: center;
  padding: 1px 0 1px 6px; border-left: 3px solid transparent; }
.workbench .wb-layer .wb-name { font-size: 12.5px; }
.workbench .wb-chosen { border-left-color: var(--jp-brand-color1, #1976d2); background: var(--jp-layout-color2, #f0f2f4); }
.workbench .wb-bar { display: grid; grid-template-columns: minmax(0, 1fr) 104px; align-items: center; gap: 6px; min-width: 0; }
.workbench .wb-bar i { display: block; height: 13px; min-width: 1px; border-radius: 1px; }
.workbench .wb-bar small, .workbench .wb-legend { color: var(--jp-ui-font-color2, #57606a); font-size: 12px; }
.workbench .wb-bar small { white-space: nowrap; overflow: hidden; text-overflow: ellipsis; font-variant-numeric: tabular-nums; }
.workbench .wb-type { display: inline-block; width: 10px; height: 12px; margin-right: 6px; vertical-align: -1px; }
.workbench .wb-legend { display: flex; flex-flow: row wrap; gap: 4px 16px; margin: 6px 0; }
.workbench .wb-legend span { display: inline-flex; align-items: center; gap: 6px; }
.workbench .wb-legend i { width: 14px; height: 12px; }
.workbench i.wb-added { background-image:
  repeating-linear-gradient(45deg, transparent 0 3px, var(--jp-layout-color0, #fff) 3px 5px); }
.workbench .wb-table-tools { display: flex; flex-flow: row wrap; gap: 6px 14px; align-items: flex-start; padding: 4px; }
.workbench .wb-table-tools input[type="search"] { width: 240px; max-width: 100%; padding: 4px 6px; font-size: 13px;
  border: 1px solid var(--jp-border-color1, #8c959f); background: var(--jp-layout-color0, #fff);
  color: var(--jp-ui-font-color1, #1b1f24); }
.workbench .wb-columns div { display: flex; flex-flow: row wrap; gap: 2px 14px; max-width: 75ch; }
.workbench .wb-sticky { max-height: 520px; overflow: auto; outline-offset: -2px; }
.workbench .wb-sticky table { border-collapse: separate; border-spacing: 0; }
.workbench .wb-sticky th, .workbench .wb-sticky td { padding: 4px 12px 4px 6px; }
.workbench .wb-sticky td small { white-space: normal; min-width: 100px; max-width: 170px; margin-left: auto; }
.workbench .wb-sticky thead th button { white-space: normal; min-width: 56px; max-width: 150px; }
.workbench .wb-sticky thead th { vertical-align: bottom; position: sticky; top: 0; z-index: 2;
  background: var(--jp-layout-color0, #fff); }
.workbench .wb-sticky tr > :first-child { position: sticky; left: 0; z-index: 1; background: var(--jp-layout-color0, #fff);
  border-right: 1px solid var(--jp-border-color2, #d0d7de); max-width: 44vw; }
.workbench .wb-sticky thead tr > :first-child { z-index: 3; }
.workbench .wb-sticky tbody tr { cursor: pointer; }
.workbench .wb-sticky tbody tr:hover > *, .workbench .wb-sticky tbody tr.wb-chosen > * {
  background: var(--jp-layout-color2, #f0f2f4); }
.workbench .wb-sticky tbody tr.wb-chosen > :first-child { box-shadow: inset 3px 0 0 var(--jp-brand-color1, #1976d2); }
.workbench .wb-sticky button { font: inherit; color: inherit; background: none; border: none; padding: 0; cursor: pointer;
  text-align: inherit; }
.workbench .wb-sticky .wb-cell, .workbench .wb-sticky .wb-pick { display: inline-block; max-width: 240px; overflow: hidden;
  text-overflow: ellipsis; white-space: nowrap; vertical-align: top; }
.workbench .wb-sticky .wb-pick { font-weight: 600; color: var(--jp-ui-font-color1, #1b1f24); }
.workbench .wb-sticky button:focus-visible, .workbench .wb-sticky:focus-visible, .workbench input[type="search"]:focus-visible {
  outline: 3px solid var(--jp-brand-color1, #1976d2); }
.workbench .wb-front { width: 100%; min-height: 430px; }
.workbench .wb-front text { fill: var(--jp-ui-font-color1, #1b1f24) !important; font-family: inherit !important; }
.workbench .wb-front .gridlayer path { stroke: var(--jp-border-color2, #d0d7de) !important; }
.workbench .wb-front .xlines-above, .workbench .wb-front .ylines-above { stroke: var(--jp-border-color1, #8c959f) !important; }
.workbench .wb-front .hovertext path { fill: var(--jp-layout-color0, #fff) !important;
  stroke: var(--jp-border-color1, #8c959f) !important; }
.workbench .wb-front .modebar-btn path { fill: var(--jp-ui-font-color2, #57606a) !important; }
.workbench .wb-front .modebar-group { background: none !important; }
.workbench .wb-graph-place { width: 100%; overflow: hidden; border: 1px solid var(--jp-border-color2, #d0d7de); }
.workbench .wb-graph-place:empty { display: none; }
.workbench .wb-graph { max-height: 640px; overflow: auto; }
.workbench .wb-graph, .workbench .wb-graph-place > * { width: 100%; }
.workbench .wb-graph svg { display: block; margin: 8px auto; max-width: none; }
.workbench .wb-graph g.node { cursor: pointer; }
.workbench { --wb-heat: #f0a24b; }
[data-jp-theme-light="false"] .workbench { --wb-heat: #8a4b08; }
.workbench .wb-heat td, .workbench .wb-heat th { padding: 6px 12px; text-align: right; }
.workbench .wb-heat caption { text-align: left; padding: 4px 0; max-width: 96cqi; }
.workbench .wb-heat td small { color: var(--jp-ui-font-color1, #1b1f24); }
.workbench .wb-heat .wb-spot { outline: 3px solid var(--jp-brand-color1, #1976d2); outline-offset: -3px; }
.workbench a { color: var(--jp-content-link-color, #0b63c4); }
@container (max-width: 560px) {
  .workbench .wb-layer { grid-template-columns: 1fr 1fr; }
  .workbench .wb-bar { grid-template-columns: minmax(0, 1fr); gap: 0; }
  .workbench .wb-layer .wb-name, .workbench .wb-heads b:first-child { grid-column: 1 / -1; }
  .workbench .wb-field .widget-label, .workbench .wb-field > .widget-label { width: 100% !important; text-align: left; }
  .workbench .wb-field { flex-flow: row wrap; height: auto !important; width: calc(100% - 4px) !important; }
  .workbench .wb-field > select, .workbench .wb-field > input, .workbench .wb-field > textarea, .workbench .wb-field > .progress {
    flex: 1 1 100%; min-height: 28px; }
  .workbench .wb-tight > .widget-label { width: auto !important; padding-right: 8px; }
.workbench .wb-actions { margin-left: 0; }
  .workbench .wb-group { min-width: 100%; }
  .workbench th, .workbench td { padding-right: 8px; }
  .workbench thead th { white-space: normal; }
  .workbench td.wb-wrap { min-width: 0; }
  .workbench td.wb-wrap:first-child { overflow-wrap: normal; }
  .workbench .wb-picture img { max-width: none; width: 560px; }
  .workbench progress { width: 60px; }
}
"""
